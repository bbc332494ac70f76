"""Lossless compression by Zstandard (RFC 8878): fast, some per cent from the entropy."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import torch
import zstandard
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.codecs.codec import Codec
from fl_split.payload import Payload, check_size
from fl_split.specs import STRICT

BLOB = "zstd"


@dataclass(frozen=True, config=STRICT)
class Zstd(Codec):
    """Everything before it, whole numbers a byte each or more, through Zstandard; lossless.

    Parameters
    ----------
    level : int
        1 (fast) to 19.
    """

    level: Annotated[int, Field(ge=1, le=19)] = 1

    up: ClassVar[str] = "what comes before it, compressed"
    down: ClassVar[str] = "as the cut gradient's own codec says"

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Return one tensor of bytes."""
        data = zstandard.ZstdCompressor(level=self.level).compress(payload.to_bytes(bytewise=True))
        blob = np.frombuffer(data, np.uint8).copy()
        return Payload({}, {BLOB: torch.from_numpy(blob).to(payload.device)})

    def unpack(self, packed: Payload) -> Payload:
        """Return what was packed."""
        frame = packed.side[BLOB].cpu().numpy().tobytes()
        try:
            size = zstandard.frame_content_size(frame)
            check_size(size)
            data = zstandard.ZstdDecompressor().decompress(frame)
            return Payload.from_bytes(data).to(packed.device)
        except zstandard.ZstdError as error:
            raise ValueError(f"no Zstandard frame: {error}") from None
