"""The server's threads: what does not depend on each other is computed at the same time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch

MOST_GROUPS, LARGEST_GROUP = 8, 16
"""Clients are served together in groups: enough of them for several cores, none so large that
it starts late."""

R = TypeVar("R")
Then = Callable[[Any], None]


def available_cores(system: Any = os) -> int:
    """Cores that this process may use; all of them where the `system` cannot tell."""
    if hasattr(system, "sched_getaffinity"):  # not on macOS
        return len(system.sched_getaffinity(0))
    return system.cpu_count() or 1


def group_size(clients: int) -> int:
    """Return how many of `clients` are served together, at least: the same on any machine."""
    return min(LARGEST_GROUP, math.ceil(clients / MOST_GROUPS))


class ServerThreads:
    """A pool of single-threaded workers; results are handed out in the thread that submits jobs.

    One torch thread per worker: then the number of workers cannot change a bit of a
    result, and workers and simulated clients do not fight over cores.
    """

    def __init__(self, threads: int = 0) -> None:
        count = threads or available_cores()
        self._pool = ThreadPoolExecutor(
            count, "tail", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._done: SimpleQueue[tuple[Future[Any], Then]] = SimpleQueue()
        self.busy = 0
        self.on_done: Callable[[], None] = lambda: None

    def submit(self, work: Callable[[], R], then: Callable[[R], None]) -> None:
        """Run `work` in a worker; `then` gets its result in the thread that calls `settle`."""
        self.busy += 1
        self._pool.submit(work).add_done_callback(lambda future: self._finish(future, then))

    def settle(self, wait_seconds: float = 0.0) -> bool:
        """Hand out the results of finished jobs; wait for the first if asked to.

        Whatever a job raised is raised here.
        """
        settled = False
        while self.busy:
            try:
                future, then = self._done.get(timeout=0 if settled else wait_seconds)
            except Empty:
                break
            self.busy -= 1
            settled = True
            then(future.result())
        return settled

    def map(self, work: Callable[[Any], R], items: Iterable[Any]) -> list[R]:
        """Return the results of `work` for all items, in their order."""
        return list(self._pool.map(work, items))

    def close(self) -> None:
        """Forget jobs that have not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _finish(self, future: Future[Any], then: Then) -> None:
        if not future.cancelled():
            self._done.put((future, then))
            self.on_done()
