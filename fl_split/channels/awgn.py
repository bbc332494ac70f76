"""Additive white Gaussian noise on numbers that are sent as they are."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.channels.analog import Analog, Decibel
from fl_split.specs import STRICT


@dataclass(frozen=True, config=STRICT)
class AWGN(Analog):
    """Add Gaussian noise to the values of every sample; for codecs that pack nothing into bits.

    Values count uses * log2(1 + SNR) / 8 bytes, two of a sample being one use of the channel.

    Parameters
    ----------
    snr_db : float or "cell"
        Power of a sample's values over that of the noise, in dB. "cell" takes that of each client
        in each round from the `cell` of the system.
    up_to : float, optional
        Each message has a ratio of its own, drawn evenly between `snr_db` and this, in dB.
    """

    snr_db: Decibel | Literal["cell"] = 10.0
    up_to: Decibel | None = None

    def receive(
        self, symbols: Tensor, noise: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Add noise."""
        return symbols + noise, torch.ones(len(symbols), 1, device=symbols.device)
