"""RandTopK: randomised Top-K sparsification (Zheng et al., IJCAI 2023, arXiv 2305.18469)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.codecs.codec import Codec, Ratio, Received, Smashed
from fl_split.codecs.sparse import keep, nominal_ratio, num_kept, restore
from fl_split.payload import Payload
from fl_split.specs import STRICT


@dataclass(frozen=True, config=STRICT)
class RandTopK(Codec):
    """Top-K that now and then keeps another entry, so that none is left out for ever.

    k entries are drawn without replacement: the k largest share a weight of 1 - alpha, all
    others alpha. No rescaling.

    Parameters
    ----------
    ratio : float
        Share of a sample's N * D entries that is kept, k = max(1, round(ratio N D)).
    alpha : float
        0 is plain Top-K.
    """

    ratio: Ratio = 0.1
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.1

    up: ClassVar[str] = "k entries per sample in fp32; bitmap or packed indices; labels"
    down: ClassVar[str] = "gradients of the kept entries"

    def nominal_ratio(self, batch: float, numbers: int) -> float:
        """Values both ways, indices up."""
        return nominal_ratio(self.ratio, batch, numbers)

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Send k drawn entries (B, k).

        Drawing without replacement, weights w, is taking the k largest of w / E with E
        exponential (Efraimidis and Spirakis, 2006).
        """
        magnitude = smashed.tokens.detach().flatten(1).abs()
        count, size = num_kept(self.ratio, smashed), magnitude.shape[1]
        weights = torch.full_like(magnitude, self.alpha / max(1, size - count))
        weights.scatter_(1, magnitude.topk(count, dim=1).indices, (1 - self.alpha) / count)
        noise = torch.empty_like(magnitude).exponential_(generator=generator)
        return keep(smashed, (weights / noise).topk(count, dim=1).indices)

    def decode(self, payload: Payload) -> Received:
        """Put entries back into place."""
        return restore(payload)
