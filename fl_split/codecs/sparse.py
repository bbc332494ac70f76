"""Some entries of the smashed data and where they are: what all sparsifiers send."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fl_split.codecs.codec import Codec, Received, Smashed
from fl_split.payload import Payload, check_size

KEPT, MASK, INDICES, SHAPE = "kept", "mask", "indices", "shape"


class Sparsifier(Codec):
    """Keep k of the N * D entries of every sample, zero elsewhere; a subclass says which.

    As `downlink` it keeps k entries of each row of the cut gradient. What is left out of it
    is lost, or with `error_feedback` added to the client's next cut gradient of the round.
    """

    ratio: float
    error_feedback: bool

    in_place: ClassVar[bool] = False
    up: ClassVar[str] = "k entries per sample in fp32; bitmap or packed indices; labels"
    down: ClassVar[str] = "gradients of the kept entries"

    def choose(self, magnitude: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return the places (B, k) of the entries to keep, given their magnitudes (B, d)."""
        raise NotImplementedError

    def nominal_ratio(self, batch: float, numbers: int) -> float:
        """Return what the ADC authors count: values both ways, indices into the batch up."""
        index_bits = math.ceil(math.log2(batch * numbers))
        return self.ratio * (2 + index_bits / 32) / 2

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Send the chosen entries (B, k).

        Raises
        ------
        ValueError
            `error_feedback`, but the samples of two batches have no error in common.
        """
        if self.error_feedback:
            raise ValueError("error_feedback is for the downlink: samples share no error")
        return keep(smashed, self.places(smashed.tokens, generator))

    def decode(self, payload: Payload) -> Received:
        """Put entries back into place."""
        return restore(payload)

    def for_gradients(self) -> Codec:
        """Return what keeps entries of the cut gradient itself."""
        return SparseGradients(self)

    def places(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """Choose k entries of every row, at least one."""
        magnitude = values.detach().flatten(1).abs()
        return self.choose(magnitude, num_kept(self.ratio, values), generator)


class SparseGradients(Codec):
    """A sparsifier on cut gradients."""

    def __init__(self, sparsifier: Sparsifier) -> None:
        self.sparsifier = sparsifier
        self.error_feedback = sparsifier.error_feedback

    def __repr__(self) -> str:
        return repr(self.sparsifier)

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Keep some entries of every row of each value."""
        values, side = {}, dict(payload.side)
        for name, value in payload.values.items():
            kept, where = entries(value, self.sparsifier.places(value, generator))
            values[f"{KEPT}:{name}"] = kept
            side |= {f"{key}:{name}": tensor for key, tensor in where.items()}
        return Payload(values, side)

    def unpack(self, packed: Payload) -> Payload:
        """Put entries back into place, zero elsewhere."""
        side, values = dict(packed.side), {}
        for key, kept in packed.values.items():
            name = key.removeprefix(f"{KEPT}:")
            found = {part: side.pop(f"{part}:{name}", None) for part in (MASK, INDICES, SHAPE)}
            where = {part: tensor for part, tensor in found.items() if tensor is not None}
            values[name] = whole(kept, where)
        return Payload(values, side)


def num_kept(ratio: float, values: Tensor) -> int:
    """Entries k that are kept of those of a row: at least one."""
    return max(1, round(ratio * values[0].numel()))


def keep(smashed: Smashed, indices: Tensor) -> Payload:
    """Send the entries at `indices` (B, k) of every sample's N * D, and the labels."""
    kept, where = entries(smashed.tokens, indices)
    return Payload({KEPT: kept}, {"labels": smashed.labels, **where})


def restore(payload: Payload) -> Received:
    """Rebuild tokens (B, N, D), zero where nothing was sent.

    Raises
    ------
    ValueError
        Entries and their places do not belong together.
    """
    tokens = whole(payload.values[KEPT], payload.side)
    return Received(tokens, payload.side["labels"].long())


def entries(values: Tensor, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the entries at `indices` (B, k) of every row, and where they are.

    That goes as packed indices or as a bitmap, whichever takes fewer bits.
    """
    size = values[0].numel()
    indices = indices.sort(dim=1).values
    kept = values.flatten(1).gather(1, indices)
    if indices.shape[1] * math.ceil(math.log2(max(2, size))) < size:
        return kept, {INDICES: indices, SHAPE: torch.tensor(values.shape[1:])}
    mask = torch.zeros(len(values), size, dtype=torch.bool)
    return kept, {MASK: mask.scatter_(1, indices, True).view(values.shape)}


def whole(kept: Tensor, where: Mapping[str, Tensor]) -> Tensor:
    """Rebuild what :func:`entries` took apart; raise ValueError if that cannot be."""
    if MASK in where:
        mask = where[MASK]
        if mask.dim() < 2 or int(mask.sum()) != kept.numel():
            raise ValueError(f"{kept.numel()} entries for a bitmap of {int(mask.sum())}")
        return kept.new_zeros(mask.shape).masked_scatter(mask, kept)
    shape = [int(number) for number in where[SHAPE]]
    check_size(len(kept), *shape)
    flat = kept.new_zeros(len(kept), math.prod(shape))
    return flat.scatter(1, where[INDICES], kept).view(-1, *shape)
