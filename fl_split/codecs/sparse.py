"""Some entries of the smashed data and where they are: what all sparsifiers send."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fl_split.codecs.codec import Codec, Received, Smashed
from fl_split.payload import Payload, check_size

KEPT, MASK, INDICES, SHAPE = "kept", "mask", "indices", "shape"


class Sparsifier(Codec):
    """Keep k of the N * D entries of every sample, zero elsewhere; a subclass says which.

    As `downlink` it keeps k entries of each row of the cut gradient. What is left out of it
    is lost, or with `error_feedback` added to the client's next cut gradient of the round: to
    the same row, which is another sample's.
    """

    ratio: float
    error_feedback: bool

    in_place: ClassVar[bool] = False
    up: ClassVar[str] = "k entries per sample in fp32; bitmap or packed indices; labels"
    down: ClassVar[str] = "gradients of the kept entries"

    def choose(self, magnitude: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Mark the k entries of every row to keep, given their magnitudes (B, d)."""
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
        return keep(smashed, self.marks(smashed.tokens, generator))

    def decode(self, payload: Payload) -> Received:
        """Put entries back into place."""
        return restore(payload)

    def for_gradients(self) -> Codec:
        """Return what keeps entries of the cut gradient itself."""
        return SparseGradients(self)

    def marks(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """Choose k entries of every row, at least one."""
        magnitude = values.detach().flatten(1).abs()
        return self.choose(magnitude, num_kept(self.ratio, values), generator)


class SparseGradients(Codec):
    """A sparsifier on cut gradients."""

    exposed: ClassVar = ()
    analog: ClassVar = True

    def __init__(self, sparsifier: Sparsifier) -> None:
        self.sparsifier = sparsifier
        self.error_feedback = sparsifier.error_feedback

    def __repr__(self) -> str:
        return repr(self.sparsifier)

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Keep some entries of every row of each value."""
        values, side = {}, dict(payload.side)
        for name, value in payload.carried.items():
            kept, where = entries(value, self.sparsifier.marks(value, generator))
            values[f"{KEPT}:{name}"] = kept
            side |= {f"{key}:{name}": tensor for key, tensor in where.items()}
        return Payload(values, side)

    def unpack(self, packed: Payload) -> Payload:
        """Put entries back into place, zero elsewhere."""
        side, values = dict(packed.side), {}
        for key, kept in packed.carried.items():
            name = key.removeprefix(f"{KEPT}:")
            found = {part: side.pop(f"{part}:{name}", None) for part in (MASK, INDICES, SHAPE)}
            where = {part: tensor for part, tensor in found.items() if tensor is not None}
            values[name] = whole(kept, where)
        return Payload(values, side)


def num_kept(ratio: float, values: Tensor) -> int:
    """Entries k that are kept of those of a row: at least one."""
    return max(1, round(ratio * values[0].numel()))


def largest(scores: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Mark the `count` largest of every row of (B, d); ties are broken at random.

    All that reach the least of them, found without sorting it all; only rows with a tie just
    there, or with what is not a number, are sorted, in random order.
    """
    marks = scores >= _least(scores, count)
    tied = marks.sum(dim=1) != count
    if tied.any():
        shuffle = torch.randperm(scores.shape[1], generator=generator).to(scores.device)
        found = shuffle[scores[tied][:, shuffle].topk(count, dim=1).indices]
        marks[tied] = torch.zeros_like(marks[tied]).scatter_(1, found, True)
    return marks


def _least(scores: Tensor, count: int) -> Tensor:
    """Return the `count`-th largest of every row of (B, d), as (B, 1)."""
    if scores.is_cpu:  # several times faster than torch
        found = np.partition(scores.cpu().numpy(), -count, axis=1)[:, -count, None]
        return torch.from_numpy(found).to(scores.device)
    return scores.topk(count, dim=1).values[:, -1:]


def places(marks: Tensor) -> Tensor:
    """Return where `marks` are set, as places in its flattened form."""
    if marks.is_cpu:  # several times faster than torch
        return torch.from_numpy(np.flatnonzero(marks.cpu().numpy())).to(marks.device)
    return marks.flatten().nonzero().flatten()


def keep(smashed: Smashed, marks: Tensor) -> Payload:
    """Send the marked entries (B, k) of every sample's N * D, and the labels."""
    kept, where = entries(smashed.tokens, marks)
    return Payload({KEPT: kept}, {"labels": smashed.labels, **where})


def restore(payload: Payload) -> Received:
    """Rebuild tokens (B, N, D), zero where nothing was sent.

    Raises
    ------
    ValueError
        Entries and their places do not belong together.
    """
    tokens = whole(payload.carried[KEPT], payload.side)
    return Received(tokens, payload.side["labels"].long())


def entries(values: Tensor, marks: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the entries that `marks` (B, d) marks, k in every row, and where they are.

    That goes as packed indices or as a bitmap, whichever takes fewer bits.
    """
    size = values[0].numel()
    found = places(marks)
    kept = values.flatten().index_select(0, found).view(len(values), -1)
    if kept.shape[1] * math.ceil(math.log2(max(2, size))) < size:
        shape = torch.tensor(values.shape[1:], device=values.device)
        return kept, {INDICES: found.view(kept.shape) % size, SHAPE: shape}
    return kept, {MASK: marks.view(values.shape)}


def whole(kept: Tensor, where: Mapping[str, Tensor]) -> Tensor:
    """Rebuild what :func:`entries` took apart; raise ValueError if that cannot be."""
    if MASK in where:
        mask = where[MASK]
        found = places(mask)
        if mask.dim() < 2 or len(found) != kept.numel():
            raise ValueError(f"{kept.numel()} entries for a bitmap of {len(found)}")
        return kept.new_zeros(mask.numel()).scatter(0, found, kept.flatten()).view(mask.shape)
    shape = where[SHAPE].tolist()
    check_size(len(kept), *shape)
    flat = kept.new_zeros(len(kept), math.prod(shape))
    return flat.scatter(1, where[INDICES], kept).view(-1, *shape)
