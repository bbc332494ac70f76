"""16-bit floats on the wire: half the bytes, straight-through gradient."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass

from fl_split.codecs.codec import Codec
from fl_split.payload import Payload
from fl_split.specs import STRICT


def _cast(payload: Payload, dtype: torch.dtype) -> Payload:
    """Cast values; what is too large for `dtype` becomes its largest number."""
    largest = torch.finfo(dtype).max
    values = {
        name: value.detach().clamp(-largest, largest).to(dtype)
        for name, value in payload.carried.items()
    }
    return Payload(values, payload.side)


class _Half(Codec):
    exposed: ClassVar = ()
    up: ClassVar[str] = "values in 16 bits"
    down: ClassVar[str] = "as the cut gradient's own codec says"

    def unpack(self, packed: Payload) -> Payload:
        """Return values in fp32."""
        values = {name: value.float() for name, value in packed.carried.items()}
        return Payload(values, packed.side)


@dataclass(frozen=True, config=STRICT)
class FP16(_Half):
    """Values as IEEE half precision: 10 bits of mantissa, up to 65,504, down to 6e-8."""

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Round values to fp16."""
        return _cast(payload, torch.float16)


@dataclass(frozen=True, config=STRICT)
class BF16(_Half):
    """Values as bfloat16: 7 bits of mantissa, the range of fp32."""

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Round values to bf16."""
        return _cast(payload, torch.bfloat16)
