"""Uniform asymmetric quantisation to 1-16 bits, straight-through gradient."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs.codec import Codec, nearest_to_zero
from fl_split.payload import Payload
from fl_split.specs import STRICT

LEVELS, RANGE = "u:", "r:"
"""Prefixes of the two side tensors that replace a value on the wire."""


@dataclass(frozen=True, config=STRICT)
class Uniform(Codec):
    """Round values to a grid of 2^bits levels between their least and their greatest.

    x is sent as q = round((x - lo) / step), step = (hi - lo) / (2^bits - 1), with lo and
    step in fp32 per group; the error is at most step / 2, its mean square step^2 / 12.

    Parameters
    ----------
    bits : int
        1 to 16 per number.
    per : "tensor" or "channel"
        What shares a grid: all numbers, or those of one feature (the last of three axes;
        kept entries of a sparsifier, which have two, share one grid).
    rounding : "nearest" or "stochastic"
        Stochastic rounding is right on average, which gradients profit from.
    """

    bits: Annotated[int, Field(ge=1, le=16)] = 8
    per: Literal["tensor", "channel"] = "tensor"
    rounding: Literal["nearest", "stochastic"] = "nearest"

    exposed: ClassVar = (LEVELS,)
    up: ClassVar[str] = "values in so many bits; least value and step, per tensor or channel"
    down: ClassVar[str] = "as the cut gradient's own codec says"

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Replace each value by its levels, whole numbers, and its range (2,) or (2, D)."""
        side = dict(payload.side)
        for name, value in payload.carried.items():
            levels, bounds = self._quantise(value.detach().float(), generator)
            side |= {LEVELS + name: levels, RANGE + name: bounds}
        return Payload({}, side)

    def unpack(self, packed: Payload) -> Payload:
        """Return values on the grid."""
        side = dict(packed.side)
        values = dict(packed.carried)
        for key in [key for key in side if key.startswith(LEVELS)]:
            name = key.removeprefix(LEVELS)
            levels, (low, step) = side.pop(key), side.pop(RANGE + name)
            values[name] = levels.float().mul_(step).add_(low)
        return Payload(values, side)

    def fill(self, packed: Payload, name: str) -> Tensor:
        """Return the level nearest to zero, (1,) or (D,)."""
        low, step = packed.side[RANGE + name.removeprefix(LEVELS)]
        return nearest_to_zero(low, step, 2**self.bits - 1)

    def value_of(self, name: str) -> str:
        """Return the value whose levels these are."""
        return name.removeprefix(LEVELS)

    def _quantise(self, value: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        per_channel = self.per == "channel" and value.dim() == 3
        axes = tuple(range(value.dim() - per_channel))
        if not value.numel():
            return value.long(), value.new_zeros(2)
        low, high = value.amin(dim=axes), value.amax(dim=axes)
        top = 2**self.bits - 1
        step = (high - low).div_(top)
        scaled = (value - low).div_(torch.where(step > 0, step, torch.ones_like(step)))
        if self.rounding == "stochastic":
            scaled += torch.rand(scaled.shape, generator=generator).to(scaled.device)
            scaled = scaled.floor_()
        else:
            scaled = scaled.round_()
        return scaled.clamp_(0, top).long(), torch.stack([low, step])
