"""Payload: what crosses the cut, and its bytes; every count of them comes from here."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

import torch
from torch import Tensor

# The position in this list is the code on the wire: append only.
DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
]
_VALUE = 0x80  # flag in the dtype byte: this tensor carries gradient


@dataclass
class Payload:
    """What one side sends over the cut for one batch.

    Attributes
    ----------
    values : dict[str, Tensor]
        Float tensors through which gradients flow; the cut gradient has their shapes.
    side : dict[str, Tensor]
        Side information without gradient: labels, indices, scales, codebooks.
    """

    values: dict[str, Tensor]
    side: dict[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes on the wire, by serialising."""
        return len(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Serialise: per tensor a name, a dtype, a shape and the raw little-endian data.

        The header costs 7 bytes and the name for a three-dimensional tensor of small
        sizes; shapes travel because cluster and token counts differ between batches.
        """
        parts: list[bytes | memoryview] = [struct.pack("<B", len(self.values) + len(self.side))]
        for flag, tensors in ((_VALUE, self.values), (0, self.side)):
            for name, tensor in tensors.items():
                data = tensor.detach().cpu().contiguous()
                label = name.encode()
                parts.append(
                    struct.pack(
                        f"<BB{len(label)}sB{data.dim()}I",
                        DTYPES.index(data.dtype) | flag,
                        len(label),
                        label,
                        data.dim(),
                        *data.shape,
                    )
                )
                parts.append(data.reshape(-1).view(torch.uint8).numpy().data)
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Payload:
        """Read what :meth:`to_bytes` wrote; the tensors share one copy of the data.

        Raises
        ------
        ValueError
            The bytes are not a payload: truncated, too long or of an unknown dtype.
        """
        buffer, payload = bytearray(data), cls({})
        try:
            (count,), offset = struct.unpack_from("<B", buffer), 1
            for _ in range(count):
                kind, length = struct.unpack_from("<BB", buffer, offset)
                name, dims = struct.unpack_from(f"<{length}sB", buffer, offset + 2)
                offset += 3 + length
                shape = struct.unpack_from(f"<{dims}I", buffer, offset)
                offset += 4 * dims
                dtype, size = DTYPES[kind & ~_VALUE], math.prod(shape)
                tensors = payload.values if kind & _VALUE else payload.side
                tensors[name.decode()] = _view(buffer, dtype, size, offset).reshape(shape)
                offset += size * dtype.itemsize
        except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"not a payload: {error}") from None
        if offset != len(buffer):
            raise ValueError(f"not a payload: expected {offset} bytes, got {len(buffer)}")
        return payload


def _view(buffer: bytearray, dtype: torch.dtype, size: int, offset: int) -> Tensor:
    if size == 0:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype, count=size, offset=offset)


def smallest(integers: Tensor) -> Tensor:
    """Cast non-negative integers to the smallest dtype that holds them all."""
    top = int(integers.max()) if integers.numel() else 0
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if top <= torch.iinfo(dtype).max:
            return integers.to(dtype)
    return integers.to(torch.int64)
