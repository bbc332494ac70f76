"""No compression: all tokens in fp32, and the labels. The reference for every codec."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from fl_split.codecs.codec import Codec
from fl_split.specs import STRICT


@dataclass(frozen=True, config=STRICT)
class Identity(Codec):
    """Uncompressed fp32 smashed data and labels."""

    def nominal_ratio(self, batch: float, numbers: int) -> float:
        """Return 1."""
        return 1.0
