"""After SL-FAC (Lin et al., 2026, arXiv 2604.07316): frequencies in bits by their energy."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs.codec import Codec, Received, Smashed, nearest_to_zero
from fl_split.payload import Payload, check_size
from fl_split.specs import STRICT

SPECTRUM, BITS, RANGE, SHAPE, LEVELS = "spectrum", "bits", "range", "shape", "slfac:"

MOST_BITS = 16


@dataclass(frozen=True, config=STRICT)
class SLFAC(Codec):
    """Send the cosine transform of a batch, each frequency in as many bits as it has energy.

    The orthonormal transform (DCT-II) runs along the tokens of a sample, or along the features
    of a token. A frequency of mean square e and b bits is taken to have the error e / 4^b. Bits
    go, one by one, where this error is largest, until `bits` per number are dealt out. What gets
    none is zero for the receiver. A frequency of b bits has 2^b cells of one size between its
    least and its greatest number in the batch, and is rebuilt in the middle of a cell. The
    gradient goes straight through rounding, and exactly through the transform.

    Reconstructed: of the paper only the abstract was read. It decomposes smashed data into
    spectral components and gives each a width by its share of the energy; what a component is,
    and how widths follow from energy, is ours.

    Parameters
    ----------
    bits : float
        Budget per number.
    along : "tokens" or "width"
        What the transform runs along.
    """

    bits: Annotated[float, Field(gt=0, le=MOST_BITS)] = 4.0
    along: Literal["tokens", "width"] = "tokens"

    exposed: ClassVar = (LEVELS,)
    up: ClassVar[str] = "frequencies in bits of their own; bits, least number, cell; labels"
    down: ClassVar[str] = "a gradient for every frequency"

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Send the spectrum, frequencies last."""
        tokens = self._turned(smashed.tokens)
        spectrum = tokens @ cosines(tokens.shape[-1], tokens.device).to(tokens.dtype).T
        return Payload({SPECTRUM: spectrum}, {"labels": smashed.labels})

    def decode(self, payload: Payload) -> Received:
        """Transform back."""
        spectrum = payload.carried[SPECTRUM]
        tokens = spectrum @ cosines(spectrum.shape[-1], spectrum.device).to(spectrum.dtype)
        return Received(self._turned(tokens), payload.side["labels"].long())

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Quantise every frequency; numbers of as many bits go together."""
        spectrum = payload.carried[SPECTRUM].detach()
        rows = spectrum.flatten(0, 1)
        bits = bits_by_energy(rows.square().mean(dim=0), self.bits)
        low, high = rows.amin(dim=0), rows.amax(dim=0)
        cell = (high - low) / 2.0**bits
        levels = (spectrum - low) / torch.where(cell > 0, cell, torch.ones_like(cell))
        levels = levels.floor().clamp(min=0).minimum(2.0**bits - 1).long()
        sent = bits > 0
        side = dict(payload.side) | {BITS: bits, RANGE: torch.stack([low, cell])[:, sent]}
        for number in bits[sent].unique().tolist():
            side[f"{LEVELS}{number}"] = levels[..., bits == number]
        side[SHAPE] = torch.tensor(spectrum.shape[:2], device=spectrum.device)
        return Payload({}, side)

    def fill(self, packed: Payload, name: str) -> Tensor:
        """Return the level nearest to zero of each frequency of so many bits."""
        bits, (low, cell) = packed.side[BITS], packed.side[RANGE]
        number = int(name.removeprefix(LEVELS))
        chosen = bits[bits > 0] == number
        return nearest_to_zero(low[chosen] + cell[chosen] / 2, cell[chosen], 2**number - 1)

    def unpack(self, packed: Payload) -> Payload:
        """Return the spectrum, every number in the middle of its cell."""
        side = dict(packed.side)
        bits, (low, cell), shape = side.pop(BITS), side.pop(RANGE), side.pop(SHAPE).tolist()
        rows, others = shape
        if rows != len(side["labels"]):
            raise ValueError(f"{rows} samples for {len(side['labels'])} labels")
        check_size(rows, others, len(bits))
        spectrum = torch.zeros(rows, others, len(bits), device=bits.device)
        sent = bits[bits > 0]
        for number in sent.unique().tolist():
            chosen = sent == number
            levels = side.pop(f"{LEVELS}{number}")
            spectrum[..., bits == number] = low[chosen] + cell[chosen] * (levels + 0.5)
        return Payload({SPECTRUM: spectrum}, side)

    def _turned(self, tokens: Tensor) -> Tensor:
        """Exchange tokens and features, if the transform runs along the first."""
        return tokens.transpose(1, 2).contiguous() if self.along == "tokens" else tokens


@lru_cache(maxsize=8)
def cosines(size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the orthonormal DCT-II as a matrix (F, F): frequencies by places."""
    places = torch.arange(size, dtype=torch.float64, device="cpu")
    waves = torch.cos(math.pi / size * (places + 0.5) * places[:, None])
    waves *= math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves.float().to(device)


def bits_by_energy(energy: Tensor, budget: float) -> Tensor:
    """Deal out `budget` bits per frequency on average, by mean squares (F,); whole numbers (F,).

    The next bit goes where energy / 4^bits is largest; ties go to the lower frequency, and what
    has no energy gets none.
    """
    places = torch.arange(MOST_BITS, dtype=torch.float64, device=energy.device)
    errors = (energy.double()[:, None] / 4.0**places).flatten()
    order = errors.sort(descending=True, stable=True)
    chosen = order.indices[: round(budget * len(energy))]
    chosen = chosen[errors[chosen] > 0] // MOST_BITS
    return torch.bincount(chosen, minlength=len(energy))
