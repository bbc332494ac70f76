"""Bit errors: a binary symmetric channel for data, frames with a checksum for the rest."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.channels.channel import (
    MOST_TRIES,
    Channel,
    Crossing,
    clean,
    count_of,
    differences,
    exposed,
    hits,
    pieces,
    tries,
)
from fl_split.codecs import Codec
from fl_split.payload import Payload
from fl_split.specs import STRICT

FRAME, CHECKSUM = 32, 4
"""Bytes of side information in a frame, and of the checksum that goes with them."""


@dataclass(frozen=True, config=STRICT)
class BitErrors(Channel):
    """Flip each bit of the data with probability `ber`; nothing repairs them.

    Side information goes in frames of 32 bytes with a checksum of 4. Each frame is sent again
    until it arrives without an error; all tries are counted.

    Parameters
    ----------
    ber : float
        Chance of an error, of each bit by itself.
    protect : "side" or "none"
        "none" protects nothing: labels, scales and the header get errors too, and a payload
        that can no longer be read is lost.
    largest : float
        The receiver sets values to zero that are not finite, or whose magnitude is above this.
        One wrong bit in the exponent of an fp32 number makes 1e37 of 0.1.
    """

    ber: Annotated[float, Field(ge=0, le=0.5)] = 1e-3
    protect: Literal["side", "none"] = "side"
    largest: Annotated[float, Field(gt=0)] = 65504.0

    def __post_init__(self) -> None:
        if self.protect == "side" and self._failure(FRAME) > 1 - 1 / MOST_TRIES:
            raise ValueError(
                f"a frame of {FRAME + CHECKSUM} bytes needs more than {MOST_TRIES} tries on "
                f"average at ber={self.ber:g}; take a ber below 0.023, or protect='none'"
            )

    def _failure(self, size: int) -> float:
        """Chance that a frame with so many bytes of side information has an error."""
        return -math.expm1(8 * (size + CHECKSUM) * math.log1p(-self.ber))

    def check(self, codec: Codec) -> None:
        """Refuse codecs of which one wrong bit spoils all."""
        if codec.exposed is None:
            raise ValueError(
                f"one wrong bit spoils all that {codec!r} packs; use a codec whose numbers may be "
                "wrong, as uniform(bits=4) or fp16(), or the channel erasure(mode='retransmit')"
            )

    def can_lose(self, codec: Codec) -> bool:
        """Tell whether the header is exposed."""
        return self.protect == "none"

    def cross(self, data: bytes, codec: Codec, generator: torch.Generator) -> Crossing:
        """Flip bits, then repeat frames."""
        spots = [(one.start, one.stop) for one in exposed(data, codec)]
        if self.protect == "none":
            spots = [(0, len(data))]
        arrived = _flipped(data, spots, self.ber, generator)
        left = len(data) - sum(stop - start for start, stop in spots)
        sizes = pieces(left, FRAME)
        failure = np.array([self._failure(size) for size in sizes.tolist()])
        frames, often = sizes + CHECKSUM, tries(failure, generator)
        resent = int((frames * (often - 1)).sum())
        size = len(data) + CHECKSUM * len(frames) + resent
        is_spoilt = self.protect == "none" and arrived != data
        try:
            received, sent = Payload.from_bytes(arrived), Payload.from_bytes(data)
        except ValueError:
            if not is_spoilt:
                raise
            return Crossing(None, size)
        gone = clean(received, self.largest)
        zeroed = count_of(gone)
        return Crossing(
            received.to_bytes() if zeroed else arrived,
            size,
            resent,
            damaged=max(zeroed, differences(sent, received)),
            zeroed=zeroed,
            is_spoilt=is_spoilt,
            gone=gone,
        )


def _flipped(
    data: bytes, spots: list[tuple[int, int]], ber: float, generator: torch.Generator
) -> bytes:
    """Flip bits of `data` between the places in `spots`, each by itself with chance `ber`."""
    places = np.concatenate([np.arange(*spot) for spot in spots] or [np.empty(0, np.int64)])
    found = hits(8 * len(places), ber, generator)
    if not len(found):
        return data
    octets = np.frombuffer(bytearray(data), np.uint8)
    np.bitwise_xor.at(octets, places[found >> 3], (1 << (found & 7)).astype(np.uint8))
    return octets.tobytes()
