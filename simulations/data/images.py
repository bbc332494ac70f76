"""Decoded images that are read row by row, from memory, from a file or from what is encoded.

All are indexed as an array (n, C, H, W): by an array of row numbers or a slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from simulations.data.encoded import EncodedImages, NoImage
from simulations.data.pictures import Transform

Decoded = NDArray[np.unsignedinteger]
Index = NDArray[np.int64] | slice


class DataError(ValueError):
    """A data set that cannot be used, and why."""


class Images(Protocol):
    """What an array of images (n, C, H, W) is, too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, C, H, W)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16; 0 is black and the largest number white."""
        ...

    def __getitem__(self, rows: Index, /) -> Decoded:
        """Return the images of some rows."""
        ...


@dataclass(frozen=True)
class OnDisk:
    """Images in a file, one after the other; only the rows asked for are read."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, rows: Index) -> Decoded:
        """Read rows; nothing stays mapped, so resident memory does not grow."""
        numbers = np.arange(self.shape[0])[rows]
        found: Decoded = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        size = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        try:
            with open(self.path, "rb", buffering=0) as file:
                for place, number in enumerate(numbers):
                    file.seek(int(number) * size)
                    if file.readinto(memoryview(found[place]).cast("B")) != size:
                        raise OSError("the file ends early")
        except OSError as error:
            raise DataError(
                f"the cache of images {self.path} cannot be read ({error}); was it cleared, or is "
                "this another machine? FL_SPLIT_CACHE names a folder that all machines share"
            ) from None
        return found


@dataclass(frozen=True)
class OnTheFly:
    """Images that are decoded each time they are read."""

    encoded: EncodedImages
    transform: Transform
    _ahead: dict[bytes, Future[Decoded]] = field(default_factory=dict, compare=False)
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "decode ahead"), compare=False, repr=False
    )

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, C, H, W)."""
        side = self.transform.size
        return len(self.encoded), self.transform.channels, side, side

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""
        return self.transform.dtype

    def __getitem__(self, rows: Index) -> Decoded:
        """Decode rows, or take what was decoded ahead."""
        numbers = np.arange(len(self.encoded))[rows]
        ahead = self._ahead.pop(numbers.tobytes(), None)
        return ahead.result() if ahead else self._decode(numbers)

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Begin to decode rows that will be asked for soon."""
        while len(self._ahead) >= MOST_AHEAD:  # their clients may have been dropped
            self._ahead.pop(next(iter(self._ahead)), None)
        numbers = np.asarray(rows)
        self._ahead[numbers.tobytes()] = self._thread.submit(self._decode, numbers)

    def _decode(self, numbers: NDArray[np.int64]) -> Decoded:
        found: Decoded = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        for place, contents in enumerate(self.encoded[numbers]):
            found[place] = decoded(contents, self.transform, self.encoded, int(numbers[place]))
        return found

    def __reduce__(self) -> tuple[type[OnTheFly], tuple[EncodedImages, Transform]]:
        """Leave behind what is being decoded; another process begins anew."""
        return OnTheFly, (self.encoded, self.transform)


MOST_AHEAD = 4
"""Batches that may wait, decoded, until they are asked for."""


@dataclass(frozen=True)
class Selected:
    """Some rows of other images."""

    images: Images
    rows: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, C, H, W)."""
        return len(self.rows), *self.images.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the images."""
        return self.images.dtype

    def __getitem__(self, rows: Index) -> Decoded:
        """Return the images of some rows."""
        return self.images[self.rows[rows]]

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Begin to decode rows that will be asked for soon."""
        prefetch(self.images, self.rows[rows])


def prefetch(images: Images, rows: NDArray[np.int64]) -> None:
    """Begin to decode rows that will be asked for soon, where images are decoded at all."""
    begin = getattr(images, "prefetch", None)
    if begin is not None:
        begin(rows)


def decodes(images: Images) -> bool:
    """Tell whether images are decoded each time they are read."""
    inner = getattr(images, "images", None)
    return isinstance(images, OnTheFly) or (inner is not None and decodes(inner))


def decoded(
    contents: bytes | NoImage, transform: Transform, encoded: EncodedImages, number: int
) -> Decoded:
    """Decode one image; DataError that names it if that cannot be done."""
    try:
        if isinstance(contents, NoImage):
            raise contents
        return transform.apply(contents)
    except Exception as error:  # each image format fails in its own way
        raise DataError(
            f"the image of {encoded.name(number)} cannot be used: {error}; "
            "on_bad_image='skip' leaves such images out"
        ) from None


def bad_images(encoded: EncodedImages, bad: Mapping[int, str]) -> str:
    """Name images that cannot be used."""
    number, fault = next(iter(bad.items()))
    return (
        f"{len(bad):,} of {len(encoded):,} images cannot be used, the first is that of "
        f"{encoded.name(number)}: {fault}"
    )
