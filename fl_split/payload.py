"""Payload: what crosses the cut, and its bytes; every count of them comes from here."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
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
]
MOST_NUMBERS = 2**28
"""Of any tensor that is rebuilt: damaged bytes must not ask for all memory."""

_VALUE = 0x80  # flag in the dtype byte: this tensor carries gradient
_PACKED = 0x40  # flag in the dtype byte: whole numbers of so many bits each; 0: booleans
_ZEROS = _PACKED | 63  # whole numbers that are all zero: no data


@dataclass
class Payload:
    """What one side sends over the cut for one batch.

    Attributes
    ----------
    carried : dict[str, Tensor]
        Float tensors, the values, through which gradients flow; the cut gradient has their shapes.
    side : dict[str, Tensor]
        Side information without gradient: labels, indices, scales, codebooks.
    local : Tensor, optional
        A loss that the sender minimises beside; it is not sent.
    work : tuple of int, optional
        Operations of making it and of learning from it, where they depend on the images; not sent.
    channel_state : Mapping[str, Tensor]
        What the receiver has measured of the channel, see
        :class:`~fl_split.channels.channel.Crossing`; it is not sent. Empty if there was none.
    """

    carried: dict[str, Tensor]
    side: dict[str, Tensor] = field(default_factory=dict)
    local: Tensor | None = None
    work: tuple[int, int] | None = None
    channel_state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def values(self) -> int:
        """How many values there are."""
        return sum(tensor.numel() for tensor in self.carried.values())

    @property
    def device(self) -> torch.device:
        """Where the tensors are; the CPU without any."""
        found = (*self.carried.values(), *self.side.values())
        return found[0].device if found else torch.device("cpu")

    def to(self, device: torch.device) -> Payload:
        """Return the payload with all its tensors on `device`; those that are there stay."""
        carried, side = (
            {name: tensor.to(device) for name, tensor in tensors.items()}
            for tensors in (self.carried, self.side)
        )
        return Payload(carried, side)

    @property
    def nbytes(self) -> int:
        """Bytes on the wire, by serialising."""
        return len(self.to_bytes())

    def to_bytes(self, bytewise: bool = False) -> bytes:
        """Serialise: per tensor a name, a dtype, a shape and the raw little-endian data.

        Booleans take a bit each, int64 tensors as many bits as their largest number needs
        (unless one is negative). The header costs 7 bytes and the name for a
        three-dimensional tensor of small sizes; shapes travel because cluster and token
        counts differ between batches.

        `bytewise` gives int64 tensors whole bytes, for those who compress what comes out.
        """
        parts: list[bytes | memoryview] = [struct.pack("<B", len(self.carried) + len(self.side))]
        for flag, tensors in ((_VALUE, self.carried), (0, self.side)):
            for name, tensor in tensors.items():
                code, data = _encode(tensor.detach().cpu().contiguous(), bytewise)
                label, dims = name.encode(), tensor.dim()
                layout = f"<BB{len(label)}sB{dims}I"
                fields = (code | flag, len(label), label, dims, *tensor.shape)
                parts += [struct.pack(layout, *fields), data]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Payload:
        """Read what :meth:`to_bytes` wrote; the tensors share one copy of the data, on the CPU.

        Raises
        ------
        ValueError
            The bytes are not a payload: truncated, too long or of an unknown dtype.
        """
        payload = cls({})
        for found, tensor in _tensors(bytearray(data)):
            (payload.carried if found.is_value else payload.side)[found.name] = tensor
        return payload


class Extent(NamedTuple):
    """Where the data of one tensor lie in a serialised payload, from byte `start` to `stop`.

    Attributes
    ----------
    is_value : bool
        Whether the tensor carries gradient.
    bits : int
        Of each number; 0 where all are zero and have no data.
    """

    name: str
    is_value: bool
    start: int
    stop: int
    bits: int


def extents(data: bytes | memoryview) -> list[Extent]:
    """Return where the tensors of a serialised payload lie; ValueError if it is none."""
    return [found for found, _ in _tensors(bytearray(data))]


def _tensors(buffer: bytearray) -> Iterator[tuple[Extent, Tensor]]:
    """Yield the tensors in what :meth:`Payload.to_bytes` wrote, and where each of them lies."""
    try:
        (count,), offset = struct.unpack_from("<B", buffer), 1
        for _ in range(count):
            kind, length = struct.unpack_from("<BB", buffer, offset)
            name, dims = struct.unpack_from(f"<{length}sB", buffer, offset + 2)
            offset += 3 + length
            shape = struct.unpack_from(f"<{dims}I", buffer, offset)
            start = offset + 4 * dims
            code = kind & ~_VALUE
            tensor, offset = _decode(buffer, code, math.prod(shape), start)
            found = Extent(name.decode(), bool(kind & _VALUE), start, offset, _bits(code))
            yield found, tensor.reshape(shape)
    except (struct.error, IndexError, OverflowError, RuntimeError, ValueError) as error:
        raise ValueError(f"not a payload: {error}") from None
    if offset != len(buffer):
        raise ValueError(f"not a payload: expected {offset} bytes, got {len(buffer)}")


def _bits(code: int) -> int:
    """Bits of a number in the format `code`."""
    if code == _ZEROS:
        return 0
    return max(1, code & ~_PACKED) if code & _PACKED else 8 * DTYPES[code].itemsize


def _encode(tensor: Tensor, bytewise: bool) -> tuple[int, memoryview]:
    """Return the code of a tensor's format, and its data."""
    flat = tensor.reshape(-1)
    if tensor.dtype == torch.bool:
        return _PACKED, np.packbits(flat.numpy(), bitorder="little").data
    if tensor.dtype == torch.int64 and flat.numel() and int(flat.min()) >= 0:
        bits = int(flat.max()).bit_length()
        if bits == 0:
            return _ZEROS, memoryview(b"")
        if bits == 63:  # which is the code of zeros
            return DTYPES.index(torch.int64), flat.view(torch.uint8).numpy().data
        bits = -(-bits // 8) * 8 if bytewise and bits <= 48 else bits
        return _PACKED | bits, pack_bits(flat.numpy(), bits).data
    return DTYPES.index(tensor.dtype), flat.view(torch.uint8).numpy().data


def check_size(*shape: int) -> None:
    """Raise ValueError for a shape, read from the wire, that nothing sensible has."""
    if min(shape, default=0) < 0 or math.prod(shape) > MOST_NUMBERS:
        raise ValueError(f"a tensor of shape {shape}")


def _decode(buffer: bytearray, code: int, size: int, offset: int) -> tuple[Tensor, int]:
    """Read `size` numbers at `offset`; return them and where they end."""
    if code == _ZEROS:
        check_size(size)
        return torch.zeros(size, dtype=torch.int64, device="cpu"), offset
    if code & _PACKED:
        bits = code & ~_PACKED
        end = offset + -(-size * max(1, bits) // 8)
        if end > len(buffer):
            raise ValueError(f"expected {end} bytes, got {len(buffer)}")
        data = np.frombuffer(buffer, np.uint8, end - offset, offset)
        if bits == 0:
            flags = np.unpackbits(data, count=size, bitorder="little")
            return torch.from_numpy(flags.view(bool)), end
        return torch.from_numpy(unpack_bits(data, bits, size)), end
    dtype = DTYPES[code]
    if size == 0:
        return torch.empty(0, dtype=dtype, device="cpu"), offset
    tensor = torch.frombuffer(buffer, dtype=dtype, count=size, offset=offset)
    return tensor, offset + size * dtype.itemsize


def pack_bits(numbers: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Write numbers in 0..2^bits-1 one after the other, `bits` bits each, little end first."""
    octets = numbers.astype("<i8").view(np.uint8).reshape(-1, 8)
    if bits % 8 == 0:
        return np.ascontiguousarray(octets[:, : bits // 8]).reshape(-1)
    if bits > 8:
        octets = np.ascontiguousarray(octets[:, : -(-bits // 8)])
        flags = np.unpackbits(octets, axis=1, bitorder="little")[:, :bits]
        return np.packbits(flags.reshape(-1), bitorder="little")
    eights = np.zeros((-(-len(numbers) // 8), 8), "<i8")
    eights.reshape(-1)[: len(numbers)] = numbers
    words = (eights @ (1 << _shifts(bits))).view(np.uint8).reshape(-1, 8)
    packed = np.ascontiguousarray(words[:, :bits]).reshape(-1)
    return packed[: -(-len(numbers) * bits // 8)]


def unpack_bits(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """Read back `count` numbers that :func:`pack_bits` wrote."""
    if bits in (8, 16, 32):
        return data[: count * bits // 8].view(f"<u{bits // 8}").astype(np.int64)
    if bits > 8:
        flags = np.unpackbits(data, count=count * bits, bitorder="little").reshape(count, bits)
        octets = np.zeros((count, 8), np.uint8)
        packed = np.packbits(flags, axis=1, bitorder="little")
        octets[:, : packed.shape[1]] = packed
        return octets.view("<i8").reshape(count).astype(np.int64)
    padded = np.zeros((-(-count // 8), bits), np.uint8)
    padded.reshape(-1)[: len(data)] = data
    words = np.zeros((len(padded), 8), np.uint8)
    words[:, :bits] = padded
    eights = words.view("<i8") >> _shifts(bits) & (1 << bits) - 1
    return eights.reshape(-1)[:count].astype(np.int64, copy=False)


def _shifts(bits: int) -> NDArray[np.int64]:
    """Where in a word of `bits` bytes each of eight numbers begins."""
    return bits * np.arange(8, dtype="<i8")
