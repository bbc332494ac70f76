"""SLICER (arXiv 2511.11608): asymmetric Top-K, magnitude splitting, adaptive bits."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs.codec import Codec, Received, Smashed
from fl_split.codecs.sparse import KEPT, keep, num_kept, restore
from fl_split.payload import Payload
from fl_split.specs import STRICT

NEGATIVE, BLOCKS, BITS, RANGE, LEVELS = "negative", "blocks", "bits", "range", "slicer:"

DEVIATION = "deviation"
"""Standard deviation of every sample, for the threshold; not sent."""

MOST_BITS = 8


@dataclass(frozen=True, config=STRICT)
class SLICER(Codec):
    """After SLICER: keep large entries, split them by magnitude, quantise each block as needed.

    Per sample: survivors are sorted by magnitude into blocks of equal count; a block sends
    signs, its least and greatest magnitude (fp16) and as few bits per entry, down from 8,
    as keep its distortion within the threshold. Which block an entry is in is sent too.

    The paper compresses inference and publishes neither code nor formulas; splitting,
    guards and the training through it (straight-through) are reconstructed.

    Parameters
    ----------
    sparsity : float
        Share of the entries that is dropped.
    blocks : int
        M per sample.
    threshold : float
        Allowed mean error: in standard deviations of the sample (guard "abs"), or of the
        8-bit levels, as a share of 256 (guard "int").
    asymmetry : float, optional
        Share of the survivors taken from the positive side; by default the largest
        magnitudes of either sign.
    """

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.5
    blocks: Annotated[int, Field(ge=1)] = 4
    threshold: Annotated[float, Field(ge=0)] = 0.1
    asymmetry: Annotated[float, Field(ge=0, le=1)] | None = None
    guard: Literal["abs", "int"] = "abs"

    in_place: ClassVar[bool] = False
    up: ClassVar[str] = "survivors in sign and few bits; places, blocks, ranges; labels"
    down: ClassVar[str] = "gradients of the survivors"

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Send the survivors (B, k); ties are broken at random.

        Where one side has too few, the other makes up for it.
        """
        flat = smashed.tokens.detach().flatten(1)
        count = num_kept(1 - self.sparsity, smashed.tokens)
        shuffle = torch.randperm(flat.shape[1], generator=generator)
        score = flat[:, shuffle]
        if self.asymmetry is None:
            order = score.abs()
        else:  # the quota of each side comes first, then whatever is largest
            quota = round(self.asymmetry * count)
            order = score.abs() + _first(score, quota) + _first(-score, count - quota)
        payload = keep(smashed, shuffle[order.topk(count, dim=1).indices])
        payload.side[DEVIATION] = flat.std(dim=1, correction=0)
        return payload

    def decode(self, payload: Payload) -> Received:
        """Put survivors back into place."""
        return restore(payload)

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Split into blocks and quantise."""
        kept = payload.values[KEPT].detach()
        size, count = kept.abs(), min(self.blocks, kept.shape[1])
        order = size.argsort(dim=1)
        rank = torch.zeros_like(order)
        rank.scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
        block = rank * count // kept.shape[1]
        low = size.new_full((len(kept), count), torch.inf).scatter_reduce(1, block, size, "amin")
        high = size.new_zeros(len(kept), count).scatter_reduce(1, block, size, "amax")
        bounds = torch.stack([low, high]).clamp(max=65504).half()
        low, high = (part.gather(1, block) for part in bounds.float())
        width = high - low
        share = (size - low) / torch.where(width > 0, width, torch.ones_like(width))
        share = share.clamp(0, 1)
        side = dict(payload.side)
        bits = self._bits(share, width, block, count, side.pop(DEVIATION))
        side |= {NEGATIVE: kept < 0, BLOCKS: block, BITS: bits, RANGE: bounds}
        own = bits.gather(1, block)
        levels = (share * (2.0**own - 1)).round().long()
        for number in bits[bits > 0].unique().tolist():
            side[f"{LEVELS}{number}"] = levels[own == number]
        return Payload({}, side)

    def unpack(self, packed: Payload) -> Payload:
        """Return survivors on their grids; a block of no bits is at its middle."""
        side = dict(packed.side)
        negative, block, bits = (side.pop(name) for name in (NEGATIVE, BLOCKS, BITS))
        low, high = (part.gather(1, block) for part in side.pop(RANGE).float())
        own = bits.gather(1, block)
        share = torch.full(block.shape, 0.5)
        for number in bits[bits > 0].unique().tolist():
            share[own == number] = side.pop(f"{LEVELS}{number}").float() / (2**number - 1)
        size = low + share * (high - low)
        return Payload({KEPT: torch.where(negative, -size, size), **packed.values}, side)

    def _bits(
        self, share: Tensor, width: Tensor, block: Tensor, count: int, deviation: Tensor
    ) -> Tensor:
        """Return the fewest bits (B, M), coming from 8, that keep within the threshold.

        `share` (B, k) is where an entry lies in its block's range, `width` that range.
        """
        empty = share.new_zeros(len(share), count)
        finest = (share * (2**MOST_BITS - 1)).round()
        bound = self.threshold * (deviation[:, None] if self.guard == "abs" else 1.0)
        bits, is_fine = torch.full(empty.shape, MOST_BITS), empty == 0
        for number in range(MOST_BITS - 1, -1, -1):
            if self.guard == "int":
                error = finest % 2 ** (MOST_BITS - number) / 2**MOST_BITS
            else:
                top = 2**number - 1
                nearest = (share * top).round() / top if top else 0.5
                error = (share - nearest).abs() * width
            mean = empty.scatter_reduce(1, block, error, "mean", include_self=False)
            is_fine &= mean <= bound
            bits = torch.where(is_fine, number, bits)
        return bits


def _first(score: Tensor, quota: int) -> Tensor:
    """Infinity at the `quota` largest positive scores of every row, 0 elsewhere."""
    order = torch.zeros_like(score)
    if quota:
        found = score.topk(quota, dim=1)
        lift = torch.where(found.values > 0, torch.inf, 0.0)
        order.scatter_(1, found.indices, lift)
    return order
