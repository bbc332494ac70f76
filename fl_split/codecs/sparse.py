"""Some entries of the smashed data and where they are: what all sparsifiers send."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fl_split.codecs.codec import Received, Smashed
from fl_split.payload import Payload, check_size

KEPT, MASK, INDICES, SHAPE = "kept", "mask", "indices", "shape"


def num_kept(ratio: float, smashed: Smashed) -> int:
    """Entries k that are kept of the N * D of a sample: at least one."""
    return max(1, round(ratio * smashed.tokens[0].numel()))


def nominal_ratio(ratio: float, batch: float, numbers: int) -> float:
    """Return what the ADC authors count: fp32 values both ways, indices into the batch up."""
    index_bits = math.ceil(math.log2(batch * numbers))
    return ratio * (2 + index_bits / 32) / 2


def keep(smashed: Smashed, indices: Tensor) -> Payload:
    """Send the entries at `indices` (B, k) of every sample's N * D, and the labels.

    Where they are goes as packed indices or as a bitmap, whichever takes fewer bits.
    """
    tokens = smashed.tokens
    size = tokens[0].numel()
    indices = indices.sort(dim=1).values
    kept = tokens.flatten(1).gather(1, indices)
    side = {"labels": smashed.labels}
    if indices.shape[1] * math.ceil(math.log2(max(2, size))) < size:
        side[INDICES], side[SHAPE] = indices, torch.tensor(tokens.shape[1:])
    else:
        mask = torch.zeros(len(tokens), size, dtype=torch.bool)
        side[MASK] = mask.scatter_(1, indices, True).view(tokens.shape)
    return Payload({KEPT: kept}, side)


def restore(payload: Payload) -> Received:
    """Rebuild tokens (B, N, D), zero where nothing was sent.

    Raises
    ------
    ValueError
        Entries and their places do not belong together.
    """
    kept, side = payload.values[KEPT], payload.side
    labels = side["labels"].long()
    if MASK in side:
        mask = side[MASK]
        if mask.dim() != 3 or int(mask.sum()) != kept.numel():
            raise ValueError(f"{kept.numel()} entries for a bitmap of {int(mask.sum())}")
        return Received(kept.new_zeros(mask.shape).masked_scatter(mask, kept), labels)
    num_tokens, width = (int(number) for number in side[SHAPE])
    check_size(len(kept), num_tokens, width)
    flat = kept.new_zeros(len(kept), num_tokens * width)
    return Received(flat.scatter(1, side[INDICES], kept).view(-1, num_tokens, width), labels)
