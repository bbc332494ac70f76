"""Images as they are stored: file contents, read row by row, never the whole split at once."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # a worker that reads decoded images needs none
    import datasets
    import pyarrow as pa

PAGES = 128 * 2**20
"""Bytes read from a mapped file until its pages are released; resident memory counts them."""

CHUNK, CHUNK_BYTES = 256, 64 * 2**20
"""Rows that are read at once when all are read, and bytes: fewer rows where they are large."""

IMAGES_PER_TASK = 32
"""Images that a thread decodes before it is asked again."""

S = TypeVar("S")
T = TypeVar("T")


class NoImage(ValueError):
    """A row that has no image, or whose file cannot be read."""


class EncodedImages:
    """Images of the rows of a table, encoded; row numbers count within `rows`.

    Parameters
    ----------
    table : datasets.Dataset
        A whole split.
    column : str
        Its column of images: contents of files, or their paths.
    rows : array
        (n,) the rows of `table` that are used.
    """

    def __init__(self, table: datasets.Dataset, column: str, rows: NDArray[np.int64]) -> None:
        self.rows = rows
        self._table = table.with_format("arrow").select_columns(column)
        self._read = 0

    def __len__(self) -> int:
        """Return n."""
        return len(self.rows)

    def __getitem__(self, numbers: NDArray[np.int64]) -> list[bytes | NoImage]:
        """Return the contents of image files; an exception in the place of one that is none."""
        if not len(numbers):
            return []
        found = [_contents(cell) for cell in self._cells(self.rows[numbers]).to_pylist()]
        self._release(sum(map(_length, found)))
        return found

    def chunks(self, most: int = CHUNK) -> Iterator[tuple[int, list[bytes | NoImage]]]:
        """Go through all images: yield the number of the first of some, and their contents.

        They are at most `most`, and fewer if they are large.
        """
        start = 0
        while start < len(self):
            cells = self._cells(self.rows[start : start + most])
            fitting = CHUNK_BYTES * len(cells) // max(1, cells.nbytes)
            found, size = list[bytes | NoImage](), 0
            for cell in cells[: max(1, fitting)].to_pylist():
                found.append(_contents(cell))
                size += _length(found[-1])
                if size > CHUNK_BYTES:  # files beside the table
                    break
            self._release(size)
            yield start, found
            start += len(found)

    def name(self, number: int) -> str:
        """Say which image this is: its row in the split, and its file if it is one."""
        row = int(self.rows[number])
        path = next(self._paths(self.rows[number : number + 1]))
        return f"row {row}" + (f" ({path})" if path else "")

    def signature(self) -> str:
        """Return a digest of what shows whether images have changed, without reading mapped ones.

        Of each file path, size, times of change and inode; of a table which of its rows are
        selected; of images in memory the images.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(np.ascontiguousarray(self.rows).tobytes())
        digest.update(repr(self._table.features).encode())
        for entry in self._table.cache_files:
            digest.update(stamp(entry["filename"]))
        marks = _selection(self._table)
        digest.update(marks or b"in memory")
        for start in range(0, len(self), CHUNK):
            numbers = np.arange(start, min(start + CHUNK, len(self)))
            paths = [*self._paths(self.rows[numbers])]
            for path in paths:
                digest.update(stamp(path) if path else b"-")
            inside = [number for number, path in zip(numbers, paths, strict=True) if path is None]
            for image in self[np.array(inside)] if marks is None else ():
                contents = image if isinstance(image, bytes) else b"-"
                digest.update(len(contents).to_bytes(8) + contents)
        return digest.hexdigest()

    @property
    def is_on_disk(self) -> bool:
        """Whether the images are in files, which may be large and may change."""
        return bool(self._table.cache_files) or (
            bool(len(self)) and any(self._paths(self.rows[:1]))
        )

    def _paths(self, rows: NDArray[np.int64]) -> Iterator[str | None]:
        """Return paths of images that are files of their own, None for those inside the table."""
        for column in self._cells(rows).chunks:
            if column.type.num_fields != 2:  # not the library's {bytes, path}
                yield from [None] * len(column)
                continue
            is_inside = column.field("bytes").is_valid().to_pylist()
            for inside, path in zip(is_inside, column.field("path").to_pylist(), strict=True):
                yield None if inside else path

    def _cells(self, rows: NDArray[np.int64]) -> pa.ChunkedArray:
        """Return rows of the table; those in a row are not copied."""
        is_range = rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all())
        chosen = self._table[int(rows[0]) : int(rows[-1]) + 1] if is_range else self._table[rows]
        return chosen.column(0)

    def _release(self, count: int) -> None:
        """Open the mapped files anew after so many bytes: that lets go of the pages read."""
        self._read += count
        if self._read > PAGES and self._table.cache_files:
            self._table, self._read = pickle.loads(pickle.dumps(self._table)), 0


def _selection(table: datasets.Dataset) -> bytes | None:
    """Return which rows of its mapped files a table holds; None if some of it is in memory."""
    marks = []
    for block in _blocks(table.data):
        if not hasattr(block, "replays"):
            return None
        marks.append((block.path, block.replays))  # what was done since it was mapped, as slicing
    digest = hashlib.blake2b(pickle.dumps(marks))
    if table._indices is not None:
        for chunk in table._indices.column(0).chunks:
            digest.update(chunk.to_numpy().tobytes())
    return digest.digest()


def _blocks(table: Any) -> Iterator[Any]:
    """Return the parts of a table of the library, each mapped from a file or in memory."""
    for row in getattr(table, "blocks", [[]]):
        for block in row:
            yield from _blocks(block)
    if not hasattr(table, "blocks"):
        yield table


def _contents(cell: dict[str, bytes | str | None] | None) -> bytes | NoImage:
    cell = cell or {}
    if isinstance(contents := cell.get("bytes"), bytes):
        return contents
    if not isinstance(path := cell.get("path"), str):
        return NoImage("no image there")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        return NoImage(f"{path}: {error.strerror or error}")


def _length(contents: bytes | NoImage) -> int:
    return len(contents) if isinstance(contents, bytes) else 0


def in_threads(
    pool: ThreadPoolExecutor, work: Callable[[S], T], images: Sequence[S]
) -> Iterator[T]:
    """Do work on each of some images; yield results in their order.

    Some images are one task: to hand over a small image takes longer than to decode it.
    """
    starts = range(0, len(images), IMAGES_PER_TASK)
    tasks = [images[first : first + IMAGES_PER_TASK] for first in starts]
    for done in pool.map(lambda some: [*map(work, some)], tasks):
        yield from done


def stamp(path: str) -> bytes:
    """Return what changes when a file is replaced, even under the same name and time."""
    try:
        found = Path(path).stat()
    except OSError:
        return f"{path} missing".encode()
    parts = path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
    return repr(parts).encode()
