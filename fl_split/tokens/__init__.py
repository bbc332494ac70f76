"""Which tokens of an image go on: one file per way to choose, one line here."""

from __future__ import annotations

from fl_split.models.cut import Head
from fl_split.models.selector import Sizes
from fl_split.models.vit import ViTHead
from fl_split.seeds import seeded
from fl_split.tables import Table
from fl_split.tokens.cls_attention import ClsAttention
from fl_split.tokens.dual_gate import DualGate
from fl_split.tokens.norm import Norm
from fl_split.tokens.random import Random
from fl_split.tokens.residual_gate import ResidualGate
from fl_split.tokens.selection import AllTokens, Selection

TOKENS: Table[type[Selection]] = Table(
    Selection,
    "fl_split.tokens",
    {
        "cls_attention": ClsAttention,
        "dual_gate": DualGate,
        "none": AllTokens,
        "norm": Norm,
        "random": Random,
        "residual_gate": ResidualGate,
    },
)


def insert(head: Head, selection: Selection, seed: int) -> None:
    """Put what `selection` builds into `head`, with weights drawn from `seed`.

    Raises
    ------
    ValueError
        The head is not of a ViT, or the choice would be made behind the cut.
    """
    if isinstance(selection, AllTokens):
        return
    if not isinstance(head, ViTHead):
        raise ValueError(
            "only images of a ViT, DeiT or DINOv2 are tokens of which some can be left out; leave "
            "tokens at none()"
        )
    sizes = Sizes(head.smashed_shape[1], len(head.blocks), head.num_read)
    with seeded(seed, "gates"):
        head.selector = selection.selector(sizes)
    if head.selector is None:
        return
    if head.end is not None and head.selector.is_ragged:
        raise ValueError(
            "the end of a U-shape takes images of one number of tokens; leave rate_mode at "
            "'exact_topk' and draw no rate for each image, or set end=0"
        )
    head.has_dropout = head.has_dropout or head.selector.draws
    penalty = selection.beside()
    if penalty is not None:
        head.beside.append(penalty)


__all__ = ["TOKENS", "AllTokens", "Selection", "insert"]
