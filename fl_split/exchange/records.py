"""What the two halves tell each other, before a transport wraps it: plain records.

A record says by its action what it is. Bytes are counted on records: see
:mod:`fl_split.exchange.account`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

HEAD, TAIL = "head", "tail"
"""Names of the two weight vectors."""
EXITS = "exits"
"""Name of the vector of exits that a client keeps for itself; it is but shown, to be measured."""

BEGIN = "begin"
"""The server starts a client's round with weights of its own."""
GO_ON = "go_on"
"""The server starts a client's round with the weights that the client keeps."""
PAYLOAD = "payload"
"""A client sends the smashed data of its next batch."""
GRADIENT = "gradient"
"""The server answers a payload with the cut gradient."""
TAKEN = "taken"
"""The server has a payload, and nothing to say of it: a client that does not wait goes on."""
SKIP = "skip"
"""The server tells a client that something of its step was lost: go on without learning."""
END = "end"
"""A client has no batch left and sends the weights that it has trained."""

SAMPLES, STEPS, SMASHED_BYTES = "num-samples", "num-steps", "smashed-bytes"
"""Numbers of a reply: samples and steps that it stands for, their uncompressed fp32 bytes."""
HELD = "num-examples"
"""Samples that the client holds in all; it says so in the reply that ends its round."""
LOSS, CPU_SECONDS = "loss", "cpu-seconds"
WORK = "flops"
"""Operations of a reply, before it was sent and after it is answered, if only the client knows."""

Number = float | list[float]

ROUND, BATCH_SIZE, RATE, PASSES = "round", "batch-size", "rate", "passes"
"""Numbers of BEGIN: the round, the client's batch size, a factor of its learning rate, and how
often it goes through its samples."""


@dataclass(frozen=True, eq=False)
class Weights:
    """A flat vector of weights as it is sent: NumPy's own file format, header included.

    Attributes
    ----------
    data : bytes or memoryview
        What is counted.
    shape : tuple[int, ...]
        (P,) for P weights.
    """

    data: bytes | memoryview
    shape: tuple[int, ...]
    dtype: str = "float32"

    @classmethod
    def of(cls, vector: NDArray[np.float32]) -> Weights:
        """Serialise a vector, copying its data once."""
        header = _npy_header(vector.dtype.str, vector.shape)
        data = b"".join([header, np.ascontiguousarray(vector).data])
        return cls(data, vector.shape, str(vector.dtype))

    def numpy(self) -> NDArray[np.float32]:
        """Look at the numbers without copying them; they cannot be written to.

        Raises
        ------
        ValueError
            The data are not as long as dtype and shape say.
        """
        dtype, count = np.dtype(self.dtype), math.prod(self.shape)
        offset = len(self.data) - count * dtype.itemsize
        if offset < 0:
            raise ValueError(f"an array of {len(self.data)} bytes, too short for {self.shape}")
        return np.frombuffer(self.data, dtype, count, offset).reshape(self.shape)


@dataclass(frozen=True)
class Record:
    """One message between server and client.

    Attributes
    ----------
    action : str
        What the record is, such as BEGIN or GRADIENT; a Python identifier, for Flower.
    payload : bytes, optional
        What a :class:`~fl_split.exchange.link.Link` sends: smashed data or a gradient.
    weights : Mapping[str, Weights]
        Synchronised weights, by the names HEAD and TAIL.
    numbers : Mapping
        Settings of a round, or work done and losses.
    step : int
        Step of the client to which a payload or gradient belongs: both sides draw from it.
    """

    action: str
    payload: bytes | memoryview | None = None
    weights: Mapping[str, Weights] = field(default_factory=dict)
    numbers: Mapping[str, Number] = field(default_factory=dict)
    step: int = 0

    def sent(self) -> bytes | memoryview:
        """Return the payload; raise ValueError if there is none."""
        if self.payload is None:
            raise ValueError(f"a {self.action!r} without a payload")
        return self.payload

    def number(self, key: str) -> float:
        """Return one of the numbers, 0 if it is not there; ValueError if it is a list."""
        value = self.numbers.get(key, 0)
        if isinstance(value, list):
            raise ValueError(f"{key} is a list")
        return value

    def list(self, key: str) -> list[float]:
        """Return a list of numbers, empty if it is not there."""
        value = self.numbers.get(key, [])
        return [float(number) for number in value] if isinstance(value, list) else []


def check_weights(found: Mapping[str, Weights], expected: Mapping[str, Weights]) -> None:
    """Check that the vectors `found` can be averaged with those `expected`.

    Raises
    ------
    ValueError
        A vector is missing or superfluous, has another shape or dtype, or holds numbers that
        are not finite.
    """
    for name in sorted(found.keys() - expected.keys()):
        raise ValueError(f"a {name} that nobody asked for")
    for name, like in expected.items():
        if name not in found:
            raise ValueError(f"no {name}")
        vector = found[name]
        if vector.shape != like.shape:
            raise ValueError(f"{name} of shape {vector.shape}, expected {like.shape}")
        if vector.dtype != like.dtype:
            raise ValueError(f"{name} of {vector.dtype}, expected {like.dtype}")
        if not np.isfinite(vector.numpy()).all():
            raise ValueError(f"a {name} that is not finite")


@lru_cache
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    file = BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()
