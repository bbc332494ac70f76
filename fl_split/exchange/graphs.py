"""Graphs between two messages: how many bytes of them a process keeps live."""

from __future__ import annotations

from threading import Lock

GRAPH_BYTES = 2 * 2**30
"""Bytes of graphs that a process keeps by default; what does not fit is computed again."""


class GraphMemory:
    """Bytes of autograd graphs that are kept until gradients come back, up to a limit.

    A graph that finds no room is dropped, and its forward repeated later: same weights, same
    bits.
    """

    def __init__(self, limit: int = GRAPH_BYTES) -> None:
        self.limit, self.used = limit, 0
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[GraphMemory], tuple[int]]:
        """Be empty in another process, where no graph can go."""
        return GraphMemory, (self.limit,)

    def has_room(self, size: int) -> bool:
        """Tell whether so many more bytes may be kept."""
        return self.used + size <= self.limit

    def take(self, size: int) -> bool:
        """Reserve so many bytes if there is room; tell whether there was."""
        with self._lock:
            if not self.has_room(size):
                return False
            self.used += size
            return True

    def give(self, size: int) -> None:
        """Free so many bytes."""
        with self._lock:
            self.used -= size
