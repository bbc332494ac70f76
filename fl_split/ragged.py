"""Batches whose images have different numbers of tokens.

They are padded with zeros at the end, (B, N, D) with `counts` (B,). What computes with them never
sees the padding: images of one number run together, number by number. So no mask is needed, and
what an image gives does not depend on how long the others are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fl_split.payload import check_size

COUNTS = "counts-of-tokens"
"""Side tensor: how many tokens each sample has."""


def by_count(counts: Tensor) -> dict[int, Tensor]:
    """Return the rows of each number of tokens in `counts` (B,), by rising number."""
    return {int(count): (counts == count).nonzero().flatten() for count in counts.unique()}


def is_real(counts: Tensor, size: int) -> Tensor:
    """Return (B, size) booleans: where there is a token and no padding."""
    return torch.arange(size, device=counts.device) < counts[:, None]


def padded(parts: Sequence[Tensor]) -> Tensor:
    """Return the rows of all parts (b, n, ...) in one, padded to the longest."""
    size = max(part.shape[1] for part in parts)
    after = [(0, 0) * (part.dim() - 2) + (0, size - part.shape[1]) for part in parts]
    return torch.cat([functional.pad(part, end) for part, end in zip(parts, after, strict=True)])


def assembled(parts: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """Put parts (b, n, ...) back to the rows that they are of, padded to the longest."""
    return parts[0] if len(parts) == 1 else padded(parts)[torch.cat([*rows]).argsort()]


def run(module: Callable[[Tensor], Tensor], tokens: Tensor, counts: Tensor | None) -> Tensor:
    """Return what `module` makes of tokens (B, N, D), without those beyond `counts` (B,)."""
    if counts is None:
        return module(tokens)
    found = by_count(counts)
    parts = [module(tokens[rows, :count].contiguous()) for count, rows in found.items()]
    return assembled(parts, [*found.values()])


def without_padding(tokens: Tensor, counts: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what is sent of tokens (B, N, D): all, or those of `counts` (B,), as (1, S, D)."""
    if counts is None:
        return tokens, {}
    return tokens[is_real(counts, tokens.shape[1])][None], {COUNTS: counts}


def with_padding(tokens: Tensor, side: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Undo :func:`without_padding`; return tokens (B, N, D) and how many each sample has.

    Raises
    ------
    ValueError
        There are more or fewer tokens than the samples have together.
    """
    if COUNTS not in side:
        return tokens, None
    counts = side[COUNTS].long()
    if len(tokens) != 1 or int(counts.min()) < 1 or int(counts.sum()) != tokens.shape[1]:
        raise ValueError(f"{tuple(tokens.shape)} tokens for samples of {counts.tolist()}")
    size = int(counts.max())
    check_size(len(counts), size, tokens.shape[2])
    found = tokens.new_zeros(len(counts), size, tokens.shape[2])
    return found.masked_scatter(is_real(counts, size)[..., None], tokens[0]), counts
