"""Experts in the server's blocks: each token runs through a few of many; one paper, one file."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from fl_split.experts.gating import Gating, blocks_with_experts
from fl_split.experts.noisy_top_k import NoisyTopK
from fl_split.experts.switch import Switch
from fl_split.models.cut import Head, Tail
from fl_split.models.mixture import Mixture
from fl_split.models.vit import ViTMiddle
from fl_split.seeds import generator
from fl_split.specs import STRICT
from fl_split.tables import Table


@dataclass(frozen=True, config=STRICT)
class NoExperts(Gating):
    """Every block keeps its MLP, which all tokens run through."""


EXPERTS: Table[type[Gating]] = Table(
    Gating,
    "fl_split.experts",
    {"noisy_top_k": NoisyTopK, "none": NoExperts, "switch": Switch},
)


def insert_experts(head: Head, tail: Tail, gating: Gating, seed: int, are_copies: bool) -> None:
    """Put experts in the place of MLPs of `tail`; `head` is before it.

    The first expert of a block is its MLP. The others are copies of it where `are_copies`, as of
    a trained model; else each is drawn by its own seed.

    Raises
    ------
    ValueError
        The tail has no Transformer blocks, has not the blocks that are named, or their MLPs are
        frozen.
    """
    if isinstance(gating, NoExperts):
        return
    if not isinstance(tail, ViTMiddle):
        raise ValueError(
            "only blocks of a ViT, DeiT or DINOv2 have an MLP that experts can take the place of; "
            "leave experts at none()"
        )
    if head.is_ragged:
        raise ValueError(
            "experts give room to a whole batch, and images of different numbers of tokens run "
            "apart; leave the rate_mode of tokens at 'exact_topk', and draw no rate for each image"
        )
    before = head.num_stages
    for number in blocks_with_experts(gating.blocks, before, len(tail.blocks)):
        block: Any = tail.blocks[number - before - 1]
        mlp = block.mlp
        if not all(parameter.requires_grad for parameter in mlp.parameters()):
            raise ValueError(
                f"the MLP of block {number} is frozen, and experts are trained; freeze less (with "
                "lora all MLPs are frozen), or name other blocks"
            )
        others = [copy.deepcopy(mlp) for _ in range(gating.count - 1)]
        for place, other in enumerate(others, start=1):
            if not are_copies:
                _draw(other, generator(seed, "experts", number, place))
        router = gating.router(tail.hidden_size, generator(seed, "router", number))
        block.mlp = Mixture([mlp, *others], router)
        tail.has_experts = True
        tail.has_dropout = tail.has_dropout or router.draws


def mixtures(head: Head, tail: Tail) -> dict[int, Mixture]:
    """Return the mixtures of `tail`, by number of the block."""
    blocks = enumerate(getattr(tail, "blocks", ()), start=head.num_stages + 1)
    found = {number: getattr(block, "mlp", None) for number, block in blocks}
    return {number: mlp for number, mlp in found.items() if isinstance(mlp, Mixture)}


def _draw(mlp: nn.Module, draw: torch.Generator) -> None:
    """Draw matrices anew, normal with the deviation that they have; biases stay."""
    with torch.no_grad():
        for parameter in mlp.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=float(parameter.std()), generator=draw)


__all__ = ["EXPERTS", "Gating", "Mixture", "NoExperts", "insert_experts", "mixtures"]
