"""Folders of images: a folder per class, perhaps below a folder per split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from PIL import Image

from simulations.data.images import DataError
from simulations.data.splits import Decision, are_splits, kind

LISTED = 3
"""Files that a message names."""


@dataclass(frozen=True)
class Listing:
    """Files of a folder.

    Attributes
    ----------
    by_class : dict
        By split and class: image files, sorted.
    loose, others : list of Path
        Images in no folder of a class; files that are no images.
    """

    place: Path
    by_class: dict[str, dict[str, list[Path]]]
    loose: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Names of the classes of all splits, sorted."""
        return sorted({name for split in self.by_class.values() for name in split})


def listing(place: Path) -> Listing:
    """List a folder and sort its images by split and class."""
    Image.init()
    pictures: list[Path] = []
    others: list[Path] = []
    for folder, below, names in os.walk(place):
        below[:] = [name for name in below if not _is_hidden(name)]
        for name in filter(lambda one: not _is_hidden(one), names):
            path = Path(folder, name)
            is_image = Image.EXTENSION.get(path.suffix.lower()) in Image.OPEN
            (pictures if is_image else others).append(path)
    pictures.sort(key=str)
    root = _root(place, pictures)
    found = Listing(place, {}, others=sorted(others, key=str))
    parts = {path: path.relative_to(root).parts for path in pictures}
    tops = sorted({one[0] for one in parts.values() if len(one) > 1})
    has_splits = are_splits(tops) and any(len(one) > 2 for one in parts.values())
    for path, one in parts.items():
        split, inside = (one[0], one[1:]) if has_splits and len(one) > 1 else ("train", one)
        if len(inside) < 2:
            found.loose.append(path)
        else:
            found.by_class.setdefault(split, {}).setdefault(inside[0], []).append(path)
    return found


def by_class(
    found: Listing, tables: Sequence[Path]
) -> tuple[dict[str, datasets.Dataset], list[Decision]]:
    """Return a table of paths and classes for each split; classes are sorted by name.

    Splits are called as the library calls them where their names mean that: train, test,
    validation.
    """
    splits, decisions = {}, []
    for split, classes in found.by_class.items():
        names = sorted(classes)
        rows = sorted(
            ((str(path), names.index(name)) for name, paths in classes.items() for path in paths)
        )
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
        )
        table = {"image": [path for path, _ in rows], "label": [label for _, label in rows]}
        splits[_called(split, found.by_class)] = datasets.Dataset.from_dict(table, features)
    folders = [name for name in found.by_class if name != _called(name, found.by_class)]
    if folders:
        decisions.append(Decision("splits", f"folders {', '.join(map(repr, folders))}"))
    if found.loose:
        text = f"{len(found.loose):,} images in no folder of a class are left out"
        decisions.append(Decision("files", f"{text}: {_listed(found.loose)}"))
    if tables:
        text = f"classes are the names of folders; not read: {_listed(tables)}"
        decisions.append(Decision("files", text, f"dataset=local(path='{tables[0]}')"))
    rest = [file for file in found.others if file not in tables]
    if rest:
        decisions.append(Decision("files", f"{len(rest):,} files are no images: {_listed(rest)}"))
    return splits, decisions


def _called(split: str, splits: dict[str, dict[str, list[Path]]]) -> str:
    return kind(split) if are_splits([*splits]) else split


def _root(place: Path, pictures: Sequence[Path]) -> Path:
    """Step down through folders that hold one folder and nothing else, as archives have them."""
    if not pictures:
        return place
    common = Path(os.path.commonpath([str(path.parent) for path in pictures]))
    below = {path.relative_to(common).parts for path in pictures}
    is_flat = all(len(parts) == 1 for parts in below)
    return common.parent if is_flat and common != place else common if not is_flat else place


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _listed(files: Sequence[Path]) -> str:
    rest = len(files) - LISTED
    return ", ".join(file.name for file in files[:LISTED]) + (
        f" and {rest:,} more" if rest > 0 else ""
    )


def index(place: Path) -> dict[str, Path | None]:
    """Return images below a folder by path, by name, and by name without its ending.

    None stands where two images would answer to a name.
    """
    found: dict[str, Path | None] = {}
    Image.init()
    for folder, below, names in os.walk(place):
        below[:] = [name for name in below if not _is_hidden(name)]
        for name in names:
            path = Path(folder, name)
            if Image.EXTENSION.get(path.suffix.lower()) not in Image.OPEN:
                continue
            relative = path.relative_to(place).as_posix()
            for key in {relative, name, relative.removesuffix(path.suffix), path.stem}:
                found[key] = None if key in found else path
    if not found:
        raise DataError(f"no images in {str(place)!r}")
    return found
