"""Top-K sparsification of smashed data, per sample."""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs.codec import Ratio
from fl_split.codecs.sparse import Sparsifier, largest
from fl_split.specs import STRICT


@dataclass(frozen=True, config=STRICT)
class TopK(Sparsifier):
    """Keep the entries of largest magnitude of every sample, zero elsewhere.

    Parameters
    ----------
    ratio : float
        Share of a sample's N * D entries that is kept, k = max(1, round(ratio N D)).
    error_feedback : bool
        As `downlink`: add what was left out to the client's next cut gradient, row by row,
        though the rows of the next batch are other samples.
    """

    ratio: Ratio = 0.1
    error_feedback: bool = False

    def choose(self, magnitude: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Mark the k largest."""
        return largest(magnitude, count, generator)
