"""A task graph as arrays: what the clock reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from strategies.server.tasks import SERVER, Kind, Task

KINDS: tuple[Kind, ...] = get_args(Kind)

UP: tuple[Kind, ...] = ("up", "output gradient up", "sync up")
DOWN: tuple[Kind, ...] = ("sync down", "output down", "down")

Whole = NDArray[np.int64]


class Graph(NamedTuple):
    """The task graph of a round as arrays, (n,) but for `after`.

    `kinds` are places in KINDS; `amounts` are bytes of what crosses, operations of what computes.
    Task number i waits for the tasks ``after[bounds[i]:bounds[i + 1]]``.
    """

    kinds: Whole
    clients: Whole
    steps: Whole
    amounts: Whole
    after: Whole
    bounds: Whole

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> Graph:
        """Turn recorded tasks into arrays."""
        places, count = {kind: place for place, kind in enumerate(KINDS)}, len(tasks)
        sizes = np.fromiter((len(task.after) for task in tasks), np.int64, count)
        after = chain.from_iterable(task.after for task in tasks)
        return cls(
            np.fromiter((places[task.kind] for task in tasks), np.int64, count),
            np.fromiter((task.client for task in tasks), np.int64, count),
            np.fromiter((task.step for task in tasks), np.int64, count),
            np.fromiter((task.amount for task in tasks), np.int64, count),
            np.fromiter(after, np.int64, sizes.sum()),
            np.concatenate([[0], np.cumsum(sizes)]),
        )

    def are(self, *kinds: Kind) -> NDArray[np.bool_]:
        """Tell which tasks are of some kinds."""
        return np.isin(self.kinds, [KINDS.index(kind) for kind in kinds])

    @property
    def on_server(self) -> NDArray[np.bool_]:
        """Which tasks the server computes."""
        return self.clients == SERVER

    def followers(self) -> tuple[Whole, Whole]:
        """Return for each task those that wait for it, as `after` and `bounds` do the reverse."""
        waiting = np.repeat(np.arange(len(self.kinds)), np.diff(self.bounds))
        order = np.argsort(self.after, kind="stable")
        counts = np.bincount(self.after, minlength=len(self.kinds))
        return waiting[order], np.concatenate([[0], np.cumsum(counts)])
