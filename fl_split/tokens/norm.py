"""Patches of large norm, a ranking without training: the RankViT baseline of `peekvit`.

`peekvit` is the code base of the first author of arXiv 2405.02330; its code was read.
"""

from __future__ import annotations

from typing import Any

from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.models.selector import Rating, Selector, Sizes
from fl_split.specs import STRICT
from fl_split.tokens.selection import After, Rate, Selection


@dataclass(frozen=True, config=STRICT)
class Norm(Selection):
    """Keep the patches whose tokens have the largest Euclidean norm.

    Parameters
    ----------
    rate : float
        Share of the patches that go on, in (0, 1]: ceil(rate P) of P.
    after : int
        Block of the client after which they are chosen, from 1; 0 is the last one.
    """

    rate: Rate = 0.5
    after: After = 0

    def selector(self, sizes: Sizes) -> Selector:
        """Build it."""
        return Largest(self.rate, self.after, sizes)


class Largest(Selector):
    """Ranks patches by norm."""

    def rated(
        self, number: int, block: Any, before: Tensor, tokens: Tensor, mask: Tensor | None
    ) -> Rating:
        """Rate patches by what the block made of them."""
        return Rating(tokens[:, self.sizes.num_read :].detach().float().norm(dim=2))
