"""Spells: what goes on and off by turns, each for a time that is drawn."""

from __future__ import annotations

from bisect import bisect_right

import torch

from fl_split.seeds import Purpose, generator

DRAWN_AT_ONCE = 64


class Spells:
    """On and off by turns for exponential times, on at time 0 with probability on / (on + off).

    The exponential law has no memory, so that time 0 is no special time.

    Parameters
    ----------
    on, off : float
        Mean seconds of each.
    """

    def __init__(self, on: float, off: float, seed: int, purpose: Purpose, client: int) -> None:
        self._draw = generator(seed, purpose, client)
        self._means = (on, off)
        first = torch.rand((), dtype=torch.float64, generator=self._draw).item()
        self._is_on_first = first < on / (on + off)
        self._ends = [0.0]

    def at(self, time: float) -> tuple[bool, float]:
        """Tell whether it is on at a time, and until when that lasts."""
        while self._ends[-1] <= time:
            self._go_on()
        place = bisect_right(self._ends, time)
        return (place % 2 == 1) == self._is_on_first, self._ends[place]

    def _go_on(self) -> None:
        even = torch.rand(DRAWN_AT_ONCE, dtype=torch.float64, generator=self._draw)
        for length in (-torch.log1p(-even)).tolist():
            is_on = (len(self._ends) % 2 == 1) == self._is_on_first
            self._ends.append(self._ends[-1] + length * self._means[0 if is_on else 1])
