"""Patches that CLS attends to most, as EViT and the ADC codec rank them; nothing is trained.

The block's own attention decides, as in Liang et al. (ICLR 2022, arXiv 2202.07800). There the
other patches are fused to one; here they are dropped.
"""

from __future__ import annotations

from typing import Any

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fl_split.models.attention import cls_attention, cls_attention_flops
from fl_split.models.selector import Course, Rating, Selector, Sizes
from fl_split.specs import STRICT
from fl_split.tokens.selection import After, Rate, Selection


@dataclass(frozen=True, config=STRICT)
class ClsAttention(Selection):
    """Keep the patches with the most CLS attention in the block behind which they are chosen.

    It is averaged over attention heads, and carries no gradient.

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
        return MostAttended(self.rate, self.after, sizes)


class MostAttended(Selector):
    """Ranks patches by CLS attention."""

    def rated(
        self, number: int, block: Any, before: Tensor, tokens: Tensor, mask: Tensor | None
    ) -> Rating:
        """Rate patches by the attention row of `block`."""
        return Rating(cls_attention(block, before)[:, self.sizes.num_read :])

    def forward_flops(self, blocks: nn.ModuleList, course: Course) -> int:
        """Operations of the attention row; there is no backward."""
        place = self.after - 1
        return cls_attention_flops(blocks[place], course.in_blocks[place], self.sizes.width)
