"""What a real node is told of the run, since it sees no other data than its own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from simulations.data.pictures import Transform


@dataclass(frozen=True)
class Terms:
    """What all nodes must agree on.

    Attributes
    ----------
    class_names : list of str
        Class 0, 1, ...
    image_size, channels : int
        What the model is built for.
    transform : Transform
        How an image becomes an array to train on.
    """

    class_names: list[str]
    image_size: int
    channels: int
    transform: Transform

    def to_bytes(self) -> bytes:
        """Return what :meth:`from_bytes` reads."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Terms:
        """Read what :meth:`to_bytes` returned."""
        found = json.loads(bytes(data))
        return cls(**{**found, "transform": Transform(**found["transform"])})
