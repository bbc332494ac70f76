"""Bit errors: a binary symmetric channel for data, frames with a checksum for the rest."""

from __future__ import annotations

import math
from dataclasses import replace
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

Rate = Annotated[float, Field(ge=0, le=0.5)]


@dataclass(frozen=True, config=STRICT)
class BitErrors(Channel):
    """Flip each bit of the data with probability `ber`; nothing repairs them.

    Side information goes in frames of 32 bytes with a checksum of 4. Each frame is sent again
    until it arrives without an error; all tries are counted.

    Parameters
    ----------
    ber : float
        Chance of an error, of each bit by itself.
    protect : "side", "coded" or "none"
        "coded" sends side information in an ideal code instead, which takes as many bits as the
        capacity of the channel asks for, 1 / (1 - H(ber)) for each, for rates at which frames
        never arrive. "none" protects nothing: labels, scales and the header get errors too, and a
        payload that can no longer be read is lost.
    largest : float
        The receiver sets values to zero that are not finite, or whose magnitude is above this.
        One wrong bit in the exponent of an fp32 number makes 1e37 of 0.1.
    up_to : float, optional
        Each message has a rate of its own, drawn between `ber` and this, evenly in decades.
    """

    ber: Rate = 1e-3
    protect: Literal["side", "coded", "none"] = "side"
    largest: Annotated[float, Field(gt=0)] = 65504.0
    up_to: Rate | None = None

    def __post_init__(self) -> None:
        if self.up_to is not None and not 0 < self.ber <= self.up_to:
            raise ValueError(
                f"up_to={self.up_to:g} needs a ber above 0 that is not larger, got {self.ber:g}"
            )
        most = max(self.ber, self.up_to or 0.0)
        if self.protect == "side" and _failure(FRAME, most) > 1 - 1 / MOST_TRIES:
            raise ValueError(
                f"a frame of {FRAME + CHECKSUM} bytes needs more than {MOST_TRIES} tries on "
                f"average at ber={most:g}; take a ber below 0.023, or protect='coded' or 'none'"
            )
        if self.protect == "coded" and _capacity(most) < 1 / MOST_TRIES:
            raise ValueError(f"no code carries anything at ber={most:g}; take a ber below 0.48")

    def drawn(self, generator: torch.Generator) -> BitErrors:
        """Return the channel that one message meets: nothing is drawn without a range."""
        if self.up_to is None:
            return self
        share = float(torch.rand((), generator=generator, device="cpu"))
        return replace(self, ber=self.ber * (self.up_to / self.ber) ** share, up_to=None)

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
        """Flip bits, then protect what may have no errors."""
        return self.drawn(generator)._cross(data, codec, generator)

    def _cross(self, data: bytes, codec: Codec, generator: torch.Generator) -> Crossing:
        spots = [(one.start, one.stop) for one in exposed(data, codec)]
        if self.protect == "none":
            spots = [(0, len(data))]
        arrived = _flipped(data, spots, self.ber, generator)
        left = len(data) - sum(stop - start for start, stop in spots)
        protection, resent = self._protection(left, generator)
        size = len(data) + protection + resent
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
            state={"ber": torch.tensor(self.ber, device="cpu")},
        )

    def _protection(self, size: int, generator: torch.Generator) -> tuple[int, int]:
        """Return bytes that protect so many bytes of side information, and bytes sent again."""
        if self.protect == "coded":
            return math.ceil(size / _capacity(self.ber)) - size, 0
        sizes = pieces(size, FRAME)
        failure = np.array([_failure(one, self.ber) for one in sizes.tolist()])
        frames, often = sizes + CHECKSUM, tries(failure, generator)
        return CHECKSUM * len(frames), int((frames * (often - 1)).sum())


def _failure(size: int, ber: float) -> float:
    """Chance that a frame with so many bytes of side information has an error."""
    return -math.expm1(8 * (size + CHECKSUM) * math.log1p(-ber))


def _capacity(ber: float) -> float:
    """Bits that a sent bit can carry, 1 - H(ber)."""
    return 1 + sum(one * math.log2(one) for one in (ber, 1 - ber) if one)


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
