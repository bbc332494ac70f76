"""What a client is asked to do in a round, where that is not what the experiment says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl_split.exchange.records import BATCH_SIZE, PASSES, RATE


@dataclass(frozen=True)
class Assignment:
    """What a client is asked to do in a round that the experiment does not say.

    Attributes
    ----------
    batch_size : int
        Samples of its batches; 0 is the experiment's.
    rate : float
        What the learning rate of its head is multiplied by.
    passes : int
        How often it goes through its samples; 0 is as often as the experiment says.
    """

    batch_size: int = 0
    rate: float = 1.0
    passes: int = 0

    def numbers(self) -> dict[str, float]:
        """Return what the client is told; nothing if there is nothing to tell."""
        told = {BATCH_SIZE: self.batch_size, RATE: self.rate, PASSES: self.passes}
        return {} if self == USUAL else told

    @classmethod
    def told(cls, numbers: Mapping[str, Any]) -> Assignment:
        """Read what :meth:`numbers` returned."""
        size, passes = (int(numbers.get(key, 0)) for key in (BATCH_SIZE, PASSES))
        return cls(size, float(numbers.get(RATE, 1.0)), passes)


USUAL = Assignment()
"""What the experiment says."""
