"""Images of more than 8 bits: the range of values that they are scaled from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulations.data.splits import Decision

Ranges = NDArray[np.float64]
"""(n, 2), smallest and largest value of each image; infinite for images of 8 bits."""


@dataclass(frozen=True)
class Depth:
    """What deep images are scaled from.

    Attributes
    ----------
    low, high : float
        Smallest and largest value of the training images that are deep; of the test images if
        no training image is. Where all values are one number, `high` is above it.
    deep, total : int
        Deep images, and all.
    outside : int
        Test images with values outside, which are clipped.
    is_of_test : bool
        Whether only test images are deep.
    """

    low: float
    high: float
    deep: int
    total: int
    outside: int
    is_of_test: bool

    def decision(self) -> Decision:
        """Say what is done to deep images."""
        text = f"{self.deep:,} images of more than 8 bits; "
        text += f"{self.low:g}..{self.high:g} is scaled to 0..1"
        if self.is_of_test:
            text += ", the range of the test images: no training image has so many"
        if self.deep < self.total:
            text += "; 0..255 of the others too"
        if self.outside:
            text += f"; {self.outside:,} test images have values outside, which are clipped"
        return Decision("depth", text, is_warning=self.is_of_test or self.outside > 0)


def depth(train: Ranges, test: Ranges) -> Depth | None:
    """Find what deep images are scaled from; None if none is deep."""
    halves = [ranges[np.isfinite(ranges[:, 0])] for ranges in (train, test)]
    deep = sum(map(len, halves))
    if not deep:
        return None
    used = halves[0] if len(halves[0]) else halves[1]
    low, high = float(used[:, 0].min()), float(used[:, 1].max())
    outside = int(((halves[1][:, 0] < low) | (halves[1][:, 1] > high)).sum())
    if low == high:
        high += max(1.0, abs(low))
    return Depth(low, high, deep, len(train) + len(test), outside, not len(halves[0]))
