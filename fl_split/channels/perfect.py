"""The perfect channel: what is sent arrives, once. The reference for every channel."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass

from fl_split.channels.channel import Channel, Crossing
from fl_split.codecs import Codec
from fl_split.specs import STRICT


@dataclass(frozen=True, config=STRICT)
class Perfect(Channel):
    """Everything arrives as it was sent, at the first try."""

    is_perfect: ClassVar[bool] = True

    def cross(self, data: bytes, codec: Codec, generator: torch.Generator) -> Crossing:
        """Return what was sent."""
        return Crossing(data, len(data))
