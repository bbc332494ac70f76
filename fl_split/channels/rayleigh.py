"""Rayleigh fading, one gain for each sample, and noise, on numbers that are sent as they are."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.channels.analog import Analog, Decibel
from fl_split.specs import STRICT


@dataclass(frozen=True, config=STRICT)
class Rayleigh(Analog):
    """Multiply every sample by a random complex gain, then add Gaussian noise (block fading).

    Gains are Gaussian, of mean square magnitude 1. For codecs that pack nothing into bits;
    values count bytes as with `awgn`, at the mean SNR.

    Parameters
    ----------
    snr_db : float or "cell"
        Power of a sample's values over that of the noise, in dB, for a gain of 1.
        "cell" takes that of each client in each round from the `cell` of the system.
    csi : bool
        Whether the receiver knows the gain and divides by it: the power of a sample's noise is
        then divided by the gain's square. Else it takes what comes.
    up_to : float, optional
        Each message has a ratio of its own, drawn evenly between `snr_db` and this, in dB.
    """

    snr_db: Decibel | Literal["cell"] = 10.0
    csi: bool = True
    up_to: Decibel | None = None

    def receive(
        self, symbols: Tensor, noise: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Fade each sample, add noise, and divide by the gain if it is known."""
        draws = torch.randn(len(symbols), 1, 2, generator=generator).to(symbols.device)
        gain = torch.view_as_complex(draws / 2**0.5)
        if self.csi:
            return symbols + noise / gain, gain.abs().square()
        return gain * symbols + noise, torch.ones_like(gain.real)
