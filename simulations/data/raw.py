"""Arrays of images as image files without compression: Netpbm's PGM and PPM, made and read at once.

A million small images take seconds so, and minutes where each is packed and unpacked alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

HEADER = re.compile(rb"P(5|6(?=\n\d+ \d+\n255\n))\n(\d+) (\d+)\n(255|65535)\n")
"""What :func:`column` writes; colour of 16 bits is left to the library."""


def column(images: NDArray[np.unsignedinteger[Any]]) -> pa.Array:
    """Return images (n, H, W) of uint8 or uint16, or (n, H, W, 3) of uint8, as a column of files.

    It is what the library stores for a feature of type Image.
    """
    count, height, width = images.shape[:3]
    white = np.iinfo(images.dtype).max
    header = f"P{6 if images.ndim == 4 else 5}\n{width} {height}\n{white}\n".encode()
    values = images.astype(images.dtype.newbyteorder(">"))  # as Netpbm has it
    pixels = np.ascontiguousarray(values).view(np.uint8).reshape(count, -1)
    table = np.empty((count, len(header) + pixels.shape[1]), dtype=np.uint8)
    table[:, : len(header)], table[:, len(header) :] = list(header), pixels
    offsets = np.arange(count + 1, dtype=np.int64) * table.shape[1]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(table)]
    contents = pa.Array.from_buffers(pa.large_binary(), count, buffers)
    kind = datasets.Image().pa_type
    small = pa.chunked_array([contents]).cast(kind.field("bytes").type).combine_chunks()
    return pa.StructArray.from_arrays([small, pa.nulls(count, pa.string())], fields=[*kind])


def pixels_of(contents: Sequence[object]) -> NDArray[np.unsignedinteger[Any]] | None:
    """Return the pixels (n, H, W, C) of files that :func:`column` made; None for any others."""
    first = contents[0] if contents else None
    found = HEADER.match(first) if isinstance(first, bytes) else None
    if not found or not isinstance(first, bytes):
        return None
    header, size = found.group(), len(first)
    if not all(
        isinstance(one, bytes) and len(one) == size and one.startswith(header) for one in contents
    ):
        return None
    table = np.frombuffer(b"".join(contents), dtype=np.uint8)  # type: ignore[arg-type]
    values = np.ascontiguousarray(table.reshape(len(contents), size)[:, len(header) :])
    kind = np.dtype(">u2" if found.group(4) == b"65535" else np.uint8)
    width, height, bands = int(found.group(2)), int(found.group(3)), 2 * int(found.group(1)) - 9
    if values.shape[1] != width * height * bands * kind.itemsize:
        return None
    typed = values.view(kind).reshape(len(contents), height, width, bands)
    return typed.astype(kind.newbyteorder("="))
