"""Numbers on the air as they are: what channels with noise have in common.

Two numbers of a sample are one complex symbol. The noise of a sample follows its own power: its
variance is the mean square of the sample's numbers over the signal-to-noise ratio (SNR).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fl_split.channels.channel import Channel, Crossing, clean, count_of
from fl_split.codecs import Codec
from fl_split.payload import Payload
from fl_split.ragged import COUNTS

LEAST_DB, MOST_DB = -100.0, 300.0

Decibel = Annotated[float, Field(ge=LEAST_DB, le=MOST_DB)]


class Analog(Channel):
    """Send the carried tensors as complex symbols, side information without an error.

    The numbers count as many bytes as a code at capacity would carry in as many uses of the
    channel: uses * log2(1 + SNR) / 8. A subclass says what is received of symbols.
    """

    snr_db: Decibel | Literal["cell"]
    up_to: Decibel | None

    def __post_init__(self) -> None:
        if self.up_to is not None and (self.snr_db == "cell" or self.up_to < self.snr_db):
            raise ValueError(
                f"up_to={self.up_to:g} needs a number of snr_db that is not larger, got "
                f"{self.snr_db!r}"
            )

    @property
    def snr(self) -> float:
        """Power of the signal over that of the noise."""
        return float(10 ** (float(self.snr_db) / 10))

    @property
    def asks_snr(self) -> bool:
        """Whether it is that of a cell."""
        return self.snr_db == "cell"

    def with_snr(self, snr_db: float) -> Analog:
        """Return the channel with this signal-to-noise ratio, in dB."""
        return replace(self, snr_db=min(max(snr_db, LEAST_DB), MOST_DB))  # type: ignore[type-var]

    def drawn(self, generator: torch.Generator) -> Analog:
        """Return the channel that one message meets: nothing is drawn without a range."""
        if self.up_to is None:
            return self
        low, share = float(self.snr_db), torch.rand((), generator=generator, device="cpu")
        snr_db = low + float(share) * (self.up_to - low)
        return replace(self, snr_db=snr_db, up_to=None)  # type: ignore[type-var]

    def receive(
        self, symbols: Tensor, noise: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return what is received of complex symbols (samples, uses) with noise of that shape.

        Also the factor (samples, 1) by which the signal-to-noise ratio of each sample differs from
        that of the channel, as far as the receiver knows.
        """
        raise NotImplementedError

    def check(self, codec: Codec) -> None:
        """Refuse codecs that pack numbers into bits."""
        if not codec.analog:
            name = type(self).__name__.lower()
            raise ValueError(
                f"{name} adds noise to numbers as they are, and {codec!r} packs them into bits; "
                "use a codec that does not, as identity() or topk(ratio=0.1), or the channel "
                "erasure(mode='retransmit')"
            )

    def cross(self, data: bytes, codec: Codec, generator: torch.Generator) -> Crossing:
        """Add noise to every sample, row by row of each carried tensor."""
        return self.drawn(generator)._cross(data, generator)

    def _cross(self, data: bytes, generator: torch.Generator) -> Crossing:
        payload, uses, size = Payload.from_bytes(data), 0, len(data)
        state = dict[str, Tensor]()
        for name, value in payload.carried.items():
            size -= value.numel() * value.element_size()
            if value.numel():
                samples = _samples(value, payload.side)
                found = [self.over_the_air(rows, generator) for rows in samples]
                arrived = torch.cat([one.flatten() for one, _ in found])
                payload.carried[name] = arrived.reshape(value.shape)
                state.setdefault("snr_db", torch.cat([snr_db for _, snr_db in found]))
                uses += sum(len(rows) * -(-rows.shape[1] // 2) for rows in samples)
        gone = clean(payload)
        zeroed = count_of(gone)
        size += math.ceil(uses * math.log2(1 + self.snr) / 8)
        data = payload.to_bytes()
        return Crossing(data, size, 0, uses, damaged=zeroed, zeroed=zeroed, gone=gone, state=state)

    def over_the_air(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return what is received of samples (B, n), whose neighbours are complex symbols.

        Also the signal-to-noise ratio of each (B,) in dB, as far as the receiver knows.
        """
        symbols = _symbols(functional.pad(rows, (0, rows.shape[1] % 2)))
        power = rows.square().mean(dim=1, keepdim=True)
        noise = _gaussian(symbols.shape, generator, rows.device) * (power / self.snr).sqrt()
        received, gains = self.receive(symbols, noise, generator)
        snr_db = float(self.snr_db) + 10 * gains[:, 0].log10()
        return torch.view_as_real(received).flatten(1)[:, : rows.shape[1]], snr_db


def _samples(value: Tensor, side: Mapping[str, Tensor]) -> list[Tensor]:
    """Return a value as rows (B, n), one per sample; each alone where their sizes differ."""
    if COUNTS in side:
        return [one.reshape(1, -1) for one in value[0].split(side[COUNTS].tolist())]
    return [value.reshape(len(value) if value.dim() else 1, -1)]


def _symbols(rows: Tensor) -> Tensor:
    """Join neighbours of (samples, 2 uses) to complex symbols (samples, uses)."""
    return torch.view_as_complex(rows.reshape(len(rows), -1, 2).contiguous())


def _gaussian(shape: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw complex numbers whose real and imaginary parts have variance 1."""
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator).to(device))
