"""Asymmetric quantisation and rANS entropy coding, after arXiv 2511.11664."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import constriction
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs.codec import Codec
from fl_split.payload import Payload, check_size
from fl_split.specs import STRICT

WORDS, TABLE, SHAPE, FLAGS, WIDTH, GRID = "w:", "t:", "s:", "f:", "n:", "g:"
"""Prefixes of what stands on the wire for a tensor: coded words, (symbol, frequency), shape
(of whole numbers, of booleans),
row length of the sparse layout; and for a value that was quantised: step and zero point."""

PRECISION = 12
"""Frequencies add up to 2^12."""

SPARSE_FROM = 0.5
"""Share of the commonest symbol from which the sparse layout is tried; it never wins below."""

STREAMS = ("", "c:", "r:")
"""Prefixes of the streams of the sparse layout: values, columns, entries per row."""

Symbols = NDArray[np.int64]


@dataclass(frozen=True, config=STRICT)
class Rans(Codec):
    """After the rANS paper: quantise what is still fp32, then entropy-code whole numbers.

    Asymmetric quantisation with a zero point; each tensor of booleans or of whole numbers
    below 4,096 (levels, bitmaps, labels) becomes a table of frequencies and one rANS
    stream, or in the sparse layout three: values that differ from the commonest, their
    columns, and how many there are per row, for the number of rows that promises least
    bits. A tensor that would grow is left as it is. Behind another quantiser nothing is
    quantised twice.

    Parameters
    ----------
    bits : int
        Of the quantisation, if any.
    layout : "auto", "dense" or "sparse"
        Sparse is the paper's; on ViT features dense is smaller, and "auto" takes the smaller.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 5
    layout: Literal["auto", "dense", "sparse"] = "auto"

    up: ClassVar[str] = "values in levels, all whole numbers entropy-coded; tables, ranges"
    down: ClassVar[str] = "as the cut gradient's own codec says"

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Return coded tensors."""
        side = dict(payload.side)
        for name, value in payload.carried.items():
            side[name], side[GRID + name] = self._quantise(value.detach().float())
        coded: dict[str, Tensor] = {}
        for name, tensor in side.items():
            coded |= self._shorter(name, tensor)
        return Payload({}, coded).to(payload.device)

    def unpack(self, packed: Payload) -> Payload:
        """Return values on the grid, and whole numbers as they were."""
        side = dict(packed.side)
        for key in [key for key in side if key.startswith((SHAPE, FLAGS))]:
            name = key[len(SHAPE) :]
            shape = tuple(side.pop(key).tolist())
            check_size(*shape)
            symbols = _read(side, name, int(np.prod(shape)))
            found = torch.from_numpy(symbols).view(shape).to(packed.device)
            side[name] = found.bool() if key.startswith(FLAGS) else found
        values = dict(packed.carried)
        for key in [key for key in side if key.startswith(GRID)]:
            name = key.removeprefix(GRID)
            step, zero = side.pop(key)
            values[name] = (side.pop(name).float() - zero) * step
        return Payload(values, side)

    def _quantise(self, value: Tensor) -> tuple[Tensor, Tensor]:
        top = 2**self.bits - 1
        low, high = value.min().clamp(max=0), value.max().clamp(min=0)
        step = (high - low) / top
        safe = step if float(step) > 0 else torch.ones_like(step)
        zero = (-low / safe).round()
        return ((value / safe).round() + zero).clamp(0, top).long(), torch.stack([step, zero])

    def _shorter(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Return `tensor` coded, or as it is if that is shorter or it is no whole numbers."""
        plain = {name: tensor}
        if tensor.dtype not in (torch.int64, torch.bool) or not tensor.numel():
            return plain
        symbols: Symbols = tensor.long().cpu().numpy().reshape(-1)
        if symbols.min() < 0 or symbols.max() >= 2**PRECISION:
            return plain
        counts = np.bincount(symbols)
        share, common = counts.max() / len(symbols), int(counts.argmax())
        kind = FLAGS if tensor.dtype == torch.bool else SHAPE
        shape = {kind + name: torch.tensor(tensor.shape, device="cpu")}
        found = [plain]
        if self.layout != "sparse" or share == 1:
            found.append(shape | _coded(name, symbols))
        is_worth_it = self.layout == "auto" and share >= SPARSE_FROM
        if share < 1 and (self.layout == "sparse" or is_worth_it):
            found.append(shape | _sparse(name, symbols, common))
        return min(found, key=lambda side: Payload({}, side).nbytes)


def encode(symbols: Symbols) -> tuple[NDArray[np.uint32], Symbols]:
    """Code symbols by rANS; return words and the table (2, distinct) of symbols, frequencies."""
    distinct, places, counts = np.unique(symbols, return_inverse=True, return_counts=True)
    table = np.stack([distinct, _normalise(counts)])
    coder = constriction.stream.stack.AnsCoder()
    if len(distinct) > 1:
        coder.encode_reverse(places.reshape(-1).astype(np.int32), _model(table))
    return coder.get_compressed(), table


def decode(words: NDArray[np.uint32], table: Symbols, count: int) -> Symbols:
    """Read back `count` symbols that :func:`encode` wrote."""
    if table.ndim != 2 or len(table) != 2 or not table.size or (table[1] < 1).any():
        raise ValueError("a table that holds no frequencies")
    if table.shape[1] == 1 or not count:
        return np.full(count, table[0, 0], dtype=np.int64)
    coder = constriction.stream.stack.AnsCoder(words)
    return table[0][np.asarray(coder.decode(_model(table), count), dtype=np.int64)]


def _model(table: Symbols) -> Any:
    shares = table[1] / table[1].sum()
    return constriction.stream.model.Categorical(shares.astype(np.float64), perfect=False)


def _normalise(counts: Symbols) -> Symbols:
    """Scale frequencies to 2^12 in all, none below 1; the largest takes what rounding left."""
    scaled = np.maximum(1, counts * 2**PRECISION // counts.sum())
    scaled[scaled.argmax()] = max(1, scaled.max() + 2**PRECISION - scaled.sum())
    return scaled


def _coded(name: str, symbols: Symbols) -> dict[str, Tensor]:
    """Return one stream as it stands on the wire."""
    words, table = encode(symbols)
    found = {WORDS + name: words.view(np.uint8).copy(), TABLE + name: table}
    return {key: torch.as_tensor(value, device="cpu") for key, value in found.items()}


def _sparse(name: str, symbols: Symbols, common: int) -> dict[str, Tensor]:
    """Values, columns and counts per row, for the row length of least estimated bits."""
    places, size = np.flatnonzero(symbols != common), len(symbols)

    def counts(width: int) -> Symbols:
        return np.bincount(places // width, minlength=size // width).astype(np.int64)

    def bits(width: int) -> float:
        return _bits(places % width) + _bits(counts(width))

    widths = [w for w in range(1, min(size, 2**PRECISION - 1) + 1) if size % w == 0]
    width = min([w for w in widths if w >= 8] or widths, key=bits)
    values = np.concatenate([[common], symbols[places]])  # the first says which is common
    streams = zip(STREAMS, (values, places % width, counts(width)), strict=True)
    side = {WIDTH + name: torch.tensor([width], device="cpu")}
    for prefix, stream in streams:
        side |= _coded(prefix + name, stream)
    return side


def _bits(symbols: Symbols) -> float:
    """Empirical entropy of all symbols together."""
    counts = np.bincount(symbols)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum() * len(symbols))


def _read(side: dict[str, Tensor], name: str, size: int) -> Symbols:
    """Take a tensor's streams out of `side` and put its `size` symbols together."""

    def stream(prefix: str, count: int) -> Symbols:
        words = side.pop(WORDS + prefix + name).cpu().numpy()
        if len(words) % 4:
            raise ValueError("a stream that ends within a word")
        table = side.pop(TABLE + prefix + name).cpu().numpy()
        return decode(words.view(np.uint32), table, count)

    if WIDTH + name not in side:
        return stream("", size)
    width = int(side.pop(WIDTH + name))
    if width < 1 or size % width:
        raise ValueError(f"rows of {width} for {size} numbers")
    rows = stream(STREAMS[2], size // width)
    entries = int(rows.sum())
    if not 0 <= entries <= size:
        raise ValueError(f"{entries} entries for {size} numbers")
    columns = stream(STREAMS[1], entries)
    values = stream(STREAMS[0], entries + 1)
    symbols = np.full(size, values[0])
    symbols[np.repeat(np.arange(len(rows)), rows) * width + columns] = values[1:]
    return symbols
