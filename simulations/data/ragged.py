"""Row numbers of many clients in two arrays: a hundred thousand small ones take too much.

Imports no data set library, since workers read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

from simulations.data.samples import Samples

Rows = NDArray[np.int64]


class Ragged(Sequence[Rows]):
    """A sequence of arrays of row numbers that lie one behind the other in one array.

    Parameters
    ----------
    flat : array
        (n,) row numbers of all clients, those of client 0 first.
    sizes : array
        (clients,) how many of them each client holds; they add up to n.

    Attributes
    ----------
    bounds : array
        (clients + 1,) where the rows of each client begin, and in the end n.

    Raises
    ------
    ValueError
        The sizes do not add up to n.
    """

    def __init__(self, flat: Rows, sizes: NDArray[np.int64]) -> None:
        self.flat = np.asarray(flat, dtype=np.int64)
        self.bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        if self.bounds[-1] != len(self.flat):
            raise ValueError(f"sizes add up to {self.bounds[-1]}, but there are {len(self.flat)}")

    @classmethod
    def of(cls, parts: Iterable[Sequence[int] | Rows]) -> Ragged:
        """Join many arrays, or lists; what is joined already stays as it is."""
        if isinstance(parts, Ragged):
            return parts
        found = [*parts]
        sizes = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
        flat = np.empty(int(sizes.sum()), dtype=np.int64)
        begin = 0
        for part in found:
            flat[begin : begin + len(part)] = part
            begin += len(part)
        return cls(flat, sizes)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many rows each client holds, (clients,)."""
        return np.diff(self.bounds)

    @property
    def owners(self) -> NDArray[np.int64]:
        """Client of each row in `flat`, (n,)."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, index: int) -> Rows: ...
    @overload
    def __getitem__(self, index: slice) -> list[Rows]: ...
    def __getitem__(self, index: int | slice) -> Rows | list[Rows]:
        """Return the rows of a client, without a copy; of a slice, those of each."""
        if isinstance(index, slice):
            return [self[client] for client in range(*index.indices(len(self)))]
        client = index + len(self) if index < 0 else index
        if not 0 <= client < len(self):
            raise IndexError(f"no client {index} among {len(self)}")
        return self.flat[self.bounds[client] : self.bounds[client + 1]]

    def __iter__(self) -> Iterator[Rows]:
        """Yield the rows of each client, without copies."""
        for begin, end in pairwise(self.bounds.tolist()):
            yield self.flat[begin:end]


def class_counts(table: Samples) -> NDArray[np.int64]:
    """Count the samples of each client and class, (clients, classes)."""
    parts, classes = Ragged.of(table.partitions), table.num_classes
    cells = parts.owners * classes + table.labels[parts.flat]
    return np.bincount(cells, minlength=len(parts) * classes).reshape(len(parts), classes)


def held_by(table: Samples, with_labels: bool) -> tuple[dict[int, int], dict[int, list[int]]]:
    """Return by client how many samples it holds and, `with_labels`, how many of each class."""
    sizes = Ragged.of(table.partitions).sizes
    counts = class_counts(table).tolist() if with_labels else []
    return dict(enumerate(sizes.tolist())), dict(enumerate(counts))
