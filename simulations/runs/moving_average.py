"""Exponential moving average of the global model over rounds (Polyak and Juditsky, 1992)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fl_split.exchange.records import HEAD, TAIL, Weights


class MovingAverage:
    """The weights that are evaluated and saved: a <- d a + (1 - d) w after each round.

    It begins with the weights after the first round. With d = 0 it is the model itself.
    """

    def __init__(self, decay: float, state: Mapping[str, Tensor]) -> None:
        self.decay = decay
        self._mean = {name: vector.clone() for name, vector in state.items()}

    def add(self, weights: Mapping[str, Weights]) -> Mapping[str, Weights]:
        """Take the weights after a round; return the average, of head and tail alone."""
        if not self.decay:
            return weights
        new = {name: torch.from_numpy(weights[name].numpy().copy()) for name in (HEAD, TAIL)}
        for name, vector in new.items():
            self._mean[name] = vector.lerp(self._mean.get(name, vector), self.decay)
        return {name: Weights.of(self._mean[name].numpy()) for name in new}

    def of(self, weights: Mapping[str, Weights]) -> Mapping[str, Weights]:
        """Return the average as it is, or `weights` before the first round."""
        found = {name: Weights.of(vector.numpy()) for name, vector in self._mean.items()}
        return found or weights

    def state(self) -> dict[str, Tensor]:
        """All that it remembers, by name."""
        return dict(self._mean)
