"""Who is there and in time, in virtual time: what a round asks a model of devices and networks.

The server learns when a message came from the task graph so far. It asks when nothing that it
has not seen yet could have come earlier: before a joint step, in its own order, or at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from fl_split.seeds import StepId
from strategies.server.tasks import Task

NOBODY: frozenset[int] = frozenset()


class Late(NamedTuple):
    """Why a client is left out of the rest of a round, and how long the server waited for it.

    `wait` are microseconds, from the end of the tasks numbered `after`; 0 if it did not wait.
    """

    reason: str
    wait: int = 0
    after: tuple[int, ...] = ()


class Attendance(Protocol):
    """Decides who counts.

    Attributes
    ----------
    decides : bool
        Whether a client can be late at all.
    """

    decides: bool

    def begin(self, number: int, clients: Sequence[int]) -> tuple[int, frozenset[int]]:
        """Return after how many microseconds one of `clients` is there, and who is away then.

        Raises
        ------
        NoClientsLeft
            None of them ever is.
        """
        ...

    def vanishes(self, at: StepId) -> bool:
        """Tell whether a client is gone, for the rest of the round, when its step would begin."""
        ...

    def late(
        self, number: int, tasks: Sequence[Task], last: Mapping[int, int], asked: int
    ) -> dict[int, Late]:
        """Return who is late among clients, given the number of each one's last task.

        `asked` is how many clients the round began with.
        """
        ...

    def ends(self, number: int, tasks: Sequence[Task]) -> list[float]:
        """Return when each task of round `number` ended, in seconds from its begin.

        Raises
        ------
        ValueError
            There is no clock.
        """
        ...


class Everyone:
    """Nobody is ever late, and nothing has a time."""

    decides = False

    def begin(self, number: int, clients: Sequence[int]) -> tuple[int, frozenset[int]]:
        """Everybody is there at once."""
        return 0, NOBODY

    def vanishes(self, at: StepId) -> bool:
        """Nobody does."""
        return False

    def late(
        self, number: int, tasks: Sequence[Task], last: Mapping[int, int], asked: int
    ) -> dict[int, Late]:
        """Nobody is."""
        return {}

    def ends(self, number: int, tasks: Sequence[Task]) -> list[float]:
        """Raise ValueError: nothing has a time."""
        raise ValueError("no virtual time without a system; give one, as system='lte()'")
