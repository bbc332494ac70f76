"""No compression: all tokens in fp32, and the labels. The reference for every codec."""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass

from fl_split.codecs.codec import Received, Smashed
from fl_split.payload import Payload, smallest
from fl_split.specs import STRICT


@dataclass(frozen=True, config=STRICT)
class Identity:
    """Uncompressed fp32 smashed data and labels."""

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Send tokens (B, N, D) and labels (B,)."""
        return Payload({"tokens": smashed.tokens}, {"labels": smallest(smashed.labels)})

    def decode(self, payload: Payload) -> Received:
        """Return both as they were."""
        return Received(payload.values["tokens"], payload.side["labels"].long())
