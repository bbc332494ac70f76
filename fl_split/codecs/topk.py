"""Top-K sparsification of smashed data, per sample."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass

from fl_split.codecs.codec import Codec, Ratio, Received, Smashed
from fl_split.codecs.sparse import keep, nominal_ratio, num_kept, restore
from fl_split.payload import Payload
from fl_split.specs import STRICT


@dataclass(frozen=True, config=STRICT)
class TopK(Codec):
    """Keep the entries of largest magnitude of every sample, zero elsewhere.

    Parameters
    ----------
    ratio : float
        Share of a sample's N * D entries that is kept, k = max(1, round(ratio N D)).
    """

    ratio: Ratio = 0.1

    up: ClassVar[str] = "k entries per sample in fp32; bitmap or packed indices; labels"
    down: ClassVar[str] = "gradients of the kept entries"

    def nominal_ratio(self, batch: float, numbers: int) -> float:
        """Values both ways, indices up."""
        return nominal_ratio(self.ratio, batch, numbers)

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Send the k largest entries (B, k)."""
        count = num_kept(self.ratio, smashed)
        magnitude = smashed.tokens.detach().flatten(1).abs()
        return keep(smashed, magnitude.topk(count, dim=1).indices)

    def decode(self, payload: Payload) -> Received:
        """Put entries back into place."""
        return restore(payload)
