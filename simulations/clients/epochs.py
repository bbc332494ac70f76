"""Which samples make up which step of a round."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from fl_split.seeds import StepId, generator
from strategies.server.assignment import Assignment


@dataclass(frozen=True)
class Epochs:
    """Which samples make up which step of a round: shuffled epochs, the last batch kept."""

    seed: int
    batch_size: int
    local_epochs: int
    local_steps: int

    def asked(self, of: Assignment) -> Epochs:
        """Return the same with what a client is asked to do otherwise."""
        found = replace(self, batch_size=of.batch_size or self.batch_size)
        return replace(found, local_epochs=of.passes, local_steps=0) if of.passes else found

    def num_steps(self, num_samples: int) -> int:
        """Steps of a round: `local_steps`, or if 0 `local_epochs` passes over the samples."""
        return self.local_steps or self.local_epochs * self._per_epoch(num_samples)

    def num_samples(self, num_samples: int) -> int:
        """Samples that a client of `num_samples` goes through in a round, repeats counted."""
        epochs, rest = divmod(self.num_steps(num_samples), max(1, self._per_epoch(num_samples)))
        return epochs * num_samples + rest * self.batch_size

    def batch_samples(self, step: int, num_samples: int) -> int:
        """Samples of one step: `batch_size`, or what the epoch has left."""
        part = step % self._per_epoch(num_samples)
        return min(self.batch_size, num_samples - part * self.batch_size)

    def batch(self, at: StepId, num_samples: int) -> np.ndarray:
        """Positions, in 0..num_samples-1, of the batch at `at`."""
        epoch, part = divmod(at.step, self._per_epoch(num_samples))
        draw = generator(self.seed, "batches", at.round, at.client, epoch)
        order = torch.randperm(num_samples, generator=draw).numpy()
        return order[part * self.batch_size : (part + 1) * self.batch_size]

    def _per_epoch(self, num_samples: int) -> int:
        return -(-num_samples // self.batch_size)
