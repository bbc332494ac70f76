"""A pool of bandwidth: transfers of several clients at once share it fairly."""

from __future__ import annotations

import numpy as np

from simulations.system.networks import fair_shares
from simulations.system.part import Numbers


class Pool:
    """Transfers on their way, each with bits left; shares change when one comes or goes.

    Parameters
    ----------
    rate : float
        Bit/s in all.

    Attributes
    ----------
    state : int
        Changes with every transfer that comes or goes.
    """

    def __init__(self, rate: float) -> None:
        self.rate, self.state = rate, 0
        self._at = 0.0
        self._tasks: list[int] = []
        self._bits: Numbers = np.empty(0)
        self._roads: Numbers = np.empty(0)
        self._shares: Numbers = np.empty(0)

    def join(self, at: float, task: int, bits: float, road: float) -> None:
        """Begin a transfer at time `at`, on a road of so many bit/s."""
        self._advance(at)
        self._tasks.append(task)
        self._bits = np.append(self._bits, bits)
        self._roads = np.append(self._roads, road)
        self._share()

    def next_end(self) -> float | None:
        """Return when the next transfer ends if nobody joins; None without any."""
        if not self._tasks:
            return None
        return self._at + float((self._bits / self._shares).min())

    def leave(self, at: float) -> list[int]:
        """Return the transfers that end at time `at`, which was foreseen; at least one does."""
        ends = self._bits / self._shares
        self._advance(at)
        is_over = ends <= ends.min() * (1 + 1e-12)
        gone = [task for task, over in zip(self._tasks, is_over, strict=True) if over]
        self._tasks = [task for task, over in zip(self._tasks, is_over, strict=True) if not over]
        self._bits, self._roads = self._bits[~is_over], self._roads[~is_over]
        self._share()
        return sorted(gone)

    def _advance(self, at: float) -> None:
        self._bits = np.maximum(self._bits - self._shares * (at - self._at), 0.0)
        self._at = at

    def _share(self) -> None:
        self._shares = fair_shares(self._roads, self.rate)
        self.state += 1
