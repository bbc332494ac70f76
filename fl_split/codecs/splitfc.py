"""SplitFC: feature dropout and adaptive quantisation (Oh et al., arXiv 2307.10805)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs.codec import Codec, Ratio, Received, Smashed, nearest_to_zero
from fl_split.payload import Payload
from fl_split.specs import STRICT

COLUMNS, MASK, BITS, RANGE, LEVELS = "columns", "mask", "bits", "range", "splitfc:"

MOST_BITS = 16


@dataclass(frozen=True, config=STRICT)
class SplitFC(Codec):
    """After SplitFC: drop features at random, quantise the others by their range.

    A column is one of the D features over all samples and tokens. Columns of large
    standard deviation are kept more often, and scaled by 1 / probability. Levels minimise
    sum_j a_j^2 / (4 (Q_j - 1)^2) over columns of range a_j under a budget of bits;
    a column that gets none is replaced by its mean.

    Reconstructed: what a column is in a ViT; its standard deviation, which the paper
    normalises by channel and we take as it is, a column being a whole channel here; what
    keeps a probability from exceeding 1; and levels that are powers of two (so that each
    number takes whole bits, never 1: two levels, least and greatest, are no nearer than the
    mean), the bits left over going where they help most.

    Parameters
    ----------
    keep : float
        Share of the columns that is kept on average, 1 / R of the paper.
    bits : float
        Budget per number of a kept column.
    """

    keep: Ratio = 0.5
    bits: Annotated[float, Field(gt=0, le=MOST_BITS)] = 4.0

    in_place: ClassVar[bool] = False
    exposed: ClassVar = (LEVELS,)
    up: ClassVar[str] = "kept columns in bits of their own; which, range, bits; labels"
    down: ClassVar[str] = "gradients of the kept columns"

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Send the kept columns (B, N, D')."""
        tokens = smashed.tokens
        chances = keep_probabilities(tokens.detach().flatten(0, 1), self.keep)
        mask = torch.rand(len(chances), generator=generator).to(chances.device) < chances
        if not mask.any():
            mask[chances.argmax()] = True
        columns = tokens[..., mask] / chances[mask]
        return Payload({COLUMNS: columns}, {"labels": smashed.labels, MASK: mask})

    def decode(self, payload: Payload) -> Received:
        """Put columns back into place, zero where one was dropped."""
        columns, mask = payload.carried[COLUMNS], payload.side[MASK]
        tokens = columns.new_zeros(*columns.shape[:-1], len(mask))
        places = mask.nonzero().flatten()
        return Received(tokens.index_copy(-1, places, columns), payload.side["labels"].long())

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Quantise every column; numbers of as many bits go together."""
        columns = payload.carried[COLUMNS].detach()
        flat = columns.flatten(0, 1)
        low, high = flat.amin(dim=0), flat.amax(dim=0)
        bits = allot_bits(high - low, self.bits)
        top = 2.0**bits - 1
        step = torch.where(bits > 0, (high - low) / top.clamp(min=1), torch.zeros_like(low))
        low = torch.where(bits > 0, low, flat.mean(dim=0))
        levels = ((columns - low) / torch.where(step > 0, step, torch.ones_like(step))).round()
        side = dict(payload.side) | {BITS: bits, RANGE: torch.stack([low, step])}
        for number in bits[bits > 0].unique().tolist():
            chosen = levels[..., bits == number].clamp_(0, 2**number - 1)
            side[f"{LEVELS}{number}"] = chosen.long()
        side["shape"] = torch.tensor(columns.shape[:2], device=columns.device)
        return Payload({}, side)

    def fill(self, packed: Payload, name: str) -> Tensor:
        """Return the level nearest to zero of each column of so many bits."""
        bits, (low, step) = packed.side[BITS], packed.side[RANGE]
        chosen = bits == int(name.removeprefix(LEVELS))
        return nearest_to_zero(low[chosen], step[chosen], 2.0 ** bits[chosen] - 1)

    def unpack(self, packed: Payload) -> Payload:
        """Return the columns on their grids."""
        side = packed.side
        (low, step), bits = side[RANGE], side[BITS]
        rows, tokens = side["shape"].tolist()
        if rows != len(side["labels"]):
            raise ValueError(f"{rows} samples for {len(side['labels'])} labels")
        columns = low.expand(rows, tokens, len(bits)).clone()
        for number in bits[bits > 0].unique().tolist():
            chosen = bits == number
            columns[..., chosen] += side[f"{LEVELS}{number}"] * step[chosen]
        used = {BITS, RANGE, "shape", *(name for name in side if name.startswith(LEVELS))}
        rest = {name: tensor for name, tensor in side.items() if name not in used}
        return Payload({COLUMNS: columns}, rest)


def keep_probabilities(rows: Tensor, keep: float) -> Tensor:
    """Chance (D,) of every column of (n, D) to be kept; they sum to keep * D.

    Proportional to standard deviation + c, with the least c >= 0 for which none exceeds 1.
    """
    width = rows.shape[1]
    moved = rows - rows[0]  # exactly zero where all are equal
    deviation = torch.linalg.vector_norm(moved - moved.mean(dim=0), dim=0) / math.sqrt(len(rows))
    wanted = keep * width
    if wanted >= width or float(deviation.sum()) == 0:
        return torch.full((width,), keep, device=rows.device)
    lift = float((wanted * deviation.max() - deviation.sum()) / (width - wanted))
    lifted = deviation + max(0.0, lift)
    return (wanted * lifted / lifted.sum()).clamp(1e-6, 1)


def allot_bits(ranges: Tensor, budget: float) -> Tensor:
    """Whole bits (D,) per column for `budget` bits per number on average.

    The best real-valued levels Q solve t^3 - u t - u = 0 with t = Q - 1 and
    u = a^2 ln 2 / (2 nu); the multiplier nu is found by bisection.
    """
    a, total = ranges.double(), budget * len(ranges)
    if not bool((a > 0).any()):
        return torch.zeros(len(a), dtype=torch.int64, device=a.device)
    low, high = -80.0, 80.0  # of log2 nu
    for _ in range(20):
        middle = (low + high) / 2
        real = _levels(a, middle).log2()
        low, high = (middle, high) if float(real.sum()) > total else (low, middle)
    bits = _levels(a, high).log2().floor().clamp(0, MOST_BITS).long()
    bits[bits == 1] = 0
    places = torch.arange(MOST_BITS, device=a.device)  # what is left over by rounding down
    gains = a.square()[:, None] * _savings(a.device) * (places >= bits[:, None])
    spare = max(0, int(total - bits.sum()))  # below 0 where ranges are beyond the bisection
    best = gains.flatten().topk(min(spare, gains.numel()))
    chosen = best.indices[best.values > 0] // MOST_BITS
    bits += torch.bincount(chosen, minlength=len(a))
    return bits.where(bits != 1, 0)


def _savings(device: torch.device) -> Tensor:
    """What the next bit takes off 1 / (Q - 1)^2, of a mean 1; half of what two do, of the first."""
    places = torch.arange(1, MOST_BITS + 1, dtype=torch.float64, device=device)
    error = (2.0**places - 1) ** -2
    saved = -error.diff()
    return torch.cat([saved[:1] / 2, saved[:1] / 2, saved[1:]])


def _levels(ranges: Tensor, log2_nu: float) -> Tensor:
    u = ranges.square() * (math.log(2) / 2) * 2.0**-log2_nu
    u = u.clamp(min=1e-30)
    three = 2 * (u / 3).sqrt() * (torch.arccos((1.5 * (3 / u).sqrt()).clamp(max=1)) / 3).cos()
    root = (u.square() / 4 - u**3 / 27).clamp(min=0).sqrt()
    first, second = u / 2 + root, u / 2 - root
    one = first.pow(1 / 3) + second.sign() * second.abs().pow(1 / 3)
    return 1 + torch.where(u > 27 / 4, three, one)
