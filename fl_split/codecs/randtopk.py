"""RandTopK: randomised Top-K sparsification (Zheng et al., IJCAI 2023, arXiv 2305.18469)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs.codec import Ratio
from fl_split.codecs.sparse import Sparsifier, largest
from fl_split.specs import STRICT


@dataclass(frozen=True, config=STRICT)
class RandTopK(Sparsifier):
    """Top-K that now and then keeps another entry, so that none is left out for ever.

    k entries are drawn without replacement: the k largest share a weight of 1 - alpha, all
    others alpha. No rescaling.

    Parameters
    ----------
    ratio : float
        Share of a sample's N * D entries that is kept, k = max(1, round(ratio N D)).
    alpha : float
        0 is plain Top-K.
    error_feedback : bool
        As `downlink`: add what was left out to the client's next cut gradient, row by row,
        though the rows of the next batch are other samples.
    """

    ratio: Ratio = 0.1
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.1
    error_feedback: bool = False

    def choose(self, magnitude: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draw k entries.

        Drawing without replacement, weights w, is taking the k largest of log(U) / w with U
        uniform in (0, 1] (Efraimidis and Spirakis, 2006).
        """
        top = largest(magnitude, count, generator)
        if self.alpha == 0:
            return top
        others = self.alpha / max(1, magnitude.shape[1] - count)
        weights = others + top * ((1 - self.alpha) / count - others)
        draws = 1 - torch.rand(magnitude.shape, generator=generator).to(magnitude.device)
        return largest(draws.log_() / weights, count, generator)
