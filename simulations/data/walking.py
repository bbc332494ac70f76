"""Files below a folder, by one rule, and images among them by the names that people give them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from PIL import Image

from simulations.data.images import DataError

FOREIGN = {
    ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".avif": "AVIF", ".jxl": "JPEG XL",
}  # fmt: skip
"""Kinds of images that Pillow may not read, by how names of files end."""

LISTED = 5
"""Names that a message lists."""


def below(place: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield all files below a folder; links are followed, but not in circles.

    Left out are names that begin with a dot, and ``__MACOSX``.

    Raises
    ------
    DataError
        A folder cannot be read.
    """
    here = os.path.realpath(place)
    if here in above:
        return
    try:
        entries = sorted(os.scandir(place), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {str(place)!r}: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_dir():
            yield from below(place / entry.name, above | {here})
        else:
            yield place / entry.name


def is_picture(path: Path) -> bool:
    """Tell files that Pillow reads by how their names end."""
    Image.init()
    return Image.EXTENSION.get(path.suffix.lower()) in Image.OPEN


def is_foreign(path: Path) -> bool:
    """Tell images that need a plug-in of Pillow, as phones make them."""
    return path.suffix.lower() in FOREIGN and not is_picture(path)


def on_foreign(files: Sequence[Path]) -> str:
    """Say which images need a plug-in of Pillow, and what to do; nothing if there are none."""
    if not files:
        return ""
    kinds = " and ".join(sorted({FOREIGN[file.suffix.lower()] for file in files}))
    return (
        f"{len(files):,} images are {kinds}, which Pillow does not read: {listed(files)}; convert "
        f"them to JPEG (magick mogrify -format jpg *{files[0].suffix}), or let a file of plugins "
        "add a reader (pillow_heif.register_heif_opener())"
    )


def listed(names: Sequence[object]) -> str:
    """Name the first of some files, or of what else has a name, and count the rest."""
    shown = [one.name if isinstance(one, Path) else str(one) for one in names[:LISTED]]
    rest = len(names) - LISTED
    return ", ".join(shown) + (f" and {rest:,} more" if rest > 0 else "")


class Pictures:
    """Images below a folder, found by what a cell of a spreadsheet says.

    Parameters
    ----------
    root : Path
        The folder.
    paths : sequence of Path
        Its images.
    """

    def __init__(self, root: Path, paths: Sequence[Path]) -> None:
        self.root, self.paths = root, paths
        self._named: dict[str, list[Path]] = {}
        for path in paths:
            for name in {path.name, path.stem}:
                self._named.setdefault(name, []).append(path)

    def find(self, value: object, beside: Path) -> list[Path]:
        """Return the images that a cell may mean; of a spreadsheet in the folder `beside`.

        Those whose path ends like it, part by part; a bare name fits images in any folder. Of
        several the file at that path, from `beside` or the root; so are absolute paths and those
        with ``..``.
        """
        text = str(value).strip()
        pure = PureWindowsPath(text) if "\\" in text else PurePosixPath(text)
        parts = tuple(part for part in pure.parts if part != ".")
        if not parts:
            return []
        named = self._named.get(parts[-1], [])
        exact = [path for path in named if path.name == parts[-1]]
        found = exact or named
        if len(parts) > 1:
            found = [path for path in found if self._ends(path, parts)]
        if len(found) == 1 and parts[0] not in {"/", ".."}:
            return found
        for folder in (beside, self.root):
            path = folder.joinpath(*parts)
            if is_picture(path) and path.is_file():
                return [Path(os.path.normpath(path))]
        return found

    def _ends(self, path: Path, parts: tuple[str, ...]) -> bool:
        """Tell whether the folders of a cell are the last of a path, or end with all of them."""
        wanted, there = parts[:-1], path.absolute().parts[:-1]
        inside = path.relative_to(self.root).parts[:-1]
        return wanted == there[len(there) - len(wanted) :] or (
            bool(inside) and inside == wanted[len(wanted) - len(inside) :]
        )
