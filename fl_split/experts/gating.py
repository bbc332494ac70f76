"""The contract of the key `experts`: a frozen description of experts and of their router."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from fl_split.models.mixture import Router

Count = Annotated[int, Field(ge=1)]
Capacity = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Balance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Gating:
    """How tokens choose among experts; a frozen dataclass whose ``repr`` is its spec.

    Attributes
    ----------
    count : int
        Experts of a block.
    blocks : int or str
        Blocks of the tail that get experts: number of a block of the model, numbers with commas
        between, or ``'all'``.
    """

    count: int
    blocks: int | str

    def router(self, width: int, draw: torch.Generator) -> Router:
        """Return a router of tokens of `width` numbers, with weights from `draw`."""
        raise NotImplementedError("a gating builds a router")


def blocks_with_experts(blocks: int | str, before: int, count: int) -> list[int]:
    """Read which blocks have experts; a tail has `count` of them, behind `before` others.

    Raises
    ------
    ValueError
        The text is neither ``all`` nor numbers, a number comes twice or is not of the tail.
    """
    tail, text = range(before + 1, before + count + 1), str(blocks)
    if text == "all":
        return [*tail]
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise ValueError(
            f"blocks must be 'all' or numbers of blocks with commas between, got {text!r}"
        )
    numbers = sorted(int(word) for word in words)
    if wrong := [number for number in numbers if number not in tail]:
        raise ValueError(f"blocks: the server has blocks {tail[0]}..{tail[-1]}, got {wrong[0]}")
    if len({*numbers}) < len(numbers):
        raise ValueError(f"blocks must name each block once, got {text!r}")
    return numbers
