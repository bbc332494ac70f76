"""Images of a real node, in a folder of its own: one folder for each class, read as they are used.

Images go by the names of their files, whatever their class: the order decides which of them make
up a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulations.data.folders import listing
from simulations.data.images import DataError, Decoded, Index
from simulations.data.pictures import Transform
from simulations.data.survey import look
from simulations.data.walking import listed, on_foreign


@dataclass(frozen=True)
class Folder:
    """Image files and the names of their classes, in the order in which they are used."""

    paths: list[Path]
    classes: list[str]

    def labels(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the place (n,) of each image's class among `names`.

        Raises
        ------
        DataError
            A class is not among them.
        """
        strange = sorted({*self.classes} - {*names})
        if strange:
            raise DataError(
                f"the folder of images has the classes {listed(strange)}, which the server does "
                f"not know; it knows {listed(names)}"
            )
        places = {name: place for place, name in enumerate(names)}
        return np.array([places[name] for name in self.classes], dtype=np.int64)


def read_folder(path: str) -> Folder:
    """Read a folder FOLDER/CLASS/IMAGE.

    Raises
    ------
    DataError
        There is no such folder, or something in it has no class.
    """
    place = Path(path).expanduser()
    if not path or not place.is_dir():
        raise DataError(f"no folder {path!r}")
    found = listing(place)
    if found.foreign:
        raise DataError(on_foreign(found.foreign))
    if found.loose or found.splits_are or found.fault:
        strange = [one.relative_to(place) for one in found.loose or found.pictures]
        raise DataError(
            f"{path!r} must hold folders of classes with images in them, and has "
            f"{listed([*map(str, strange)])}"
        )
    rows = [(one, name) for name, paths in found.by_class.get("train", {}).items() for one in paths]
    if not rows:
        raise DataError(f"no images in {path!r}")
    rows.sort(key=lambda row: (row[0].name, row[1]))
    return Folder([path for path, _ in rows], [name for _, name in rows])


@dataclass(frozen=True)
class FolderImages:
    """Images that are read from their files each time: a process of a node sees few of them."""

    paths: Sequence[Path]
    transform: Transform

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, C, H, W)."""
        return len(self.paths), self.transform.channels, *[self.transform.size] * 2

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """uint8 or uint16."""
        return self.transform.dtype

    def __getitem__(self, rows: Index) -> Decoded:
        """Read and decode rows."""
        numbers = np.arange(len(self.paths))[rows]
        found: Decoded = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        for place, number in enumerate(numbers):
            path = self.paths[number]
            try:
                found[place] = self.transform.apply(path.read_bytes())
            except Exception as error:  # each image format fails in its own way
                raise DataError(f"the image {str(path)!r} cannot be used: {error}") from None
        return found

    def check(self) -> None:
        """Look at all images; raise DataError that names the first that cannot be used."""
        for path in self.paths:
            if fault := look(path.read_bytes()).fault:
                raise DataError(f"the image {str(path)!r} cannot be used: {fault}")
