"""SLICER (arXiv 2511.11608): asymmetric Top-K, magnitude splitting, adaptive bits."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs.codec import Codec, Received, Smashed
from fl_split.codecs.sparse import KEPT, keep, largest, num_kept, places, restore
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
    exposed: ClassVar = (LEVELS, NEGATIVE)
    up: ClassVar[str] = "survivors in sign and few bits; places, blocks, ranges; labels"
    down: ClassVar[str] = "gradients of the survivors"

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Send the survivors (B, k); ties are broken at random.

        Where one side has too few, the other makes up for it.
        """
        flat = smashed.tokens.detach().flatten(1)
        count = num_kept(1 - self.sparsity, smashed.tokens)
        score = flat.abs()
        if self.asymmetry is not None:  # each side's quota comes first, then what is largest
            quota = round(self.asymmetry * count)
            score += _first(flat, quota, generator) + _first(-flat, count - quota, generator)
        payload = keep(smashed, largest(score, count, generator))
        spread = torch.linalg.vector_norm(flat - flat.mean(dim=1, keepdim=True), dim=1)
        payload.side[DEVIATION] = spread / math.sqrt(flat.shape[1])
        return payload

    def decode(self, payload: Payload) -> Received:
        """Put survivors back into place."""
        return restore(payload)

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Split into blocks and quantise; of a tie between blocks, all go to the lower one."""
        kept, side = payload.carried[KEPT].detach(), dict(payload.side)
        size, count = kept.abs(), min(self.blocks, kept.shape[1])
        parts = _sorted(size).tensor_split(count, dim=1)
        least, greatest = ([part[:, end] for part in parts] for end in (0, -1))
        bounds = torch.stack([torch.stack(least, 1), torch.stack(greatest, 1)])
        bounds = bounds.clamp(max=65504).half()
        deviation = side.pop(DEVIATION)
        allowed = self.threshold * (deviation if self.guard == "abs" else 1.0)
        ranges = bounds.float().unbind(2)
        found = [self._bits(*both, allowed) for both in zip(parts, ranges, strict=True)]
        bits = torch.stack(found, dim=1)
        block = torch.zeros(size.shape, dtype=torch.int64, device=size.device)
        for edge in greatest[:-1]:
            block += size > edge[:, None]
        side |= {NEGATIVE: kept < 0, BLOCKS: block, BITS: bits, RANGE: bounds}
        low, high, top = (part.gather(1, block) for part in (*bounds.float(), 2.0**bits - 1))
        levels = _share(size, low, high).mul_(top).round_().long()
        for number in bits[bits > 0].unique().tolist():
            own = places(top == 2**number - 1)
            side[f"{LEVELS}{number}"] = levels.flatten().index_select(0, own)
        return Payload({}, side)

    def unpack(self, packed: Payload) -> Payload:
        """Return survivors on their grids; a block of no bits is at its middle."""
        side = dict(packed.side)
        negative, block, bits = (side.pop(name) for name in (NEGATIVE, BLOCKS, BITS))
        low, high = (part.gather(1, block) for part in side.pop(RANGE).float())
        own = bits.gather(1, block)
        share = torch.full((block.numel(),), 0.5, device=block.device)
        for number in bits[bits > 0].unique().tolist():
            levels = side.pop(f"{LEVELS}{number}").float()
            share.index_copy_(0, places(own == number), levels / (2**number - 1))
        size = low + share.view(block.shape) * (high - low)
        return Payload({KEPT: size * (1 - 2 * negative.float()), **packed.carried}, side)

    def _bits(self, size: Tensor, ends: Tensor, allowed: Tensor | float) -> Tensor:
        """Return the fewest bits (B,), coming from 8, that keep within the threshold.

        `size` (B, n) are the entries of a block, `ends` (2, B) its range.
        """
        share = _share(size, *ends[..., None])
        width = ends[1] - ends[0]
        bits = torch.full(width.shape, MOST_BITS, device=width.device)
        is_fine = torch.full(width.shape, True, device=width.device)
        for number in range(MOST_BITS - 1, -1, -1):
            top = 2**number - 1
            if self.guard == "int":
                error = (share * (2**MOST_BITS - 1)).round_() % 2 ** (MOST_BITS - number)
                is_fine &= error.mean(dim=1) / 2**MOST_BITS <= allowed
            elif not (width <= 2 * top * allowed).all():  # else half a step is allowed
                nearest = (share * top).round_().div_(top) if top else 0.5
                is_fine &= (share - nearest).abs_().mean(dim=1) * width <= allowed
            bits = torch.where(is_fine, number, bits)
        return bits


def _sorted(size: Tensor) -> Tensor:
    """Return every row of (B, n) sorted; numpy is faster on the CPU."""
    if size.is_cpu:
        return torch.from_numpy(np.sort(size.cpu().numpy(), axis=1)).to(size.device)
    return size.sort(dim=1).values


def _share(size: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Where entries lie in the range of their block, from 0 to 1."""
    width = high - low
    width += width == 0
    return ((size - low).div_(width)).clamp_(0, 1)


def _first(score: Tensor, quota: int, generator: torch.Generator) -> Tensor:
    """Infinity at the `quota` largest positive scores of every row, 0 elsewhere."""
    if not quota:
        return torch.zeros_like(score)
    return torch.where(largest(score, quota, generator) & (score > 0), torch.inf, 0.0)
