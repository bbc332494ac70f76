"""Any patches, drawn uniformly: the control that every other choice must beat."""

from __future__ import annotations

from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.models.selector import Rating, Selector, Sizes
from fl_split.seeds import generator
from fl_split.specs import STRICT
from fl_split.tokens.selection import After, Rate, Selection


@dataclass(frozen=True, config=STRICT)
class Random(Selection):
    """Keep patches that are drawn uniformly, for each image anew.

    In training they are drawn by run, round, client and step; in testing from a public seed, by
    the place of an image in its batch, so that every test draws the same.

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
        return Drawn(self.rate, self.after, sizes)


class Drawn(Selector):
    """Ranks patches by chance."""

    draws = True

    def rated(
        self, number: int, block: Any, before: Tensor, tokens: Tensor, mask: Tensor | None
    ) -> Rating:
        """Rate patches by numbers that are drawn on the CPU, and so the same on any device."""
        shape = len(tokens), tokens.shape[1] - self.sizes.num_read
        source = None if self.training else generator(0, "tokens")
        return Rating(torch.rand(shape, generator=source, device="cpu").to(tokens.device))
