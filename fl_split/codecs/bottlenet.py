"""BottleNet++ for a ViT (Shao and Zhang, 2020, arXiv 1910.14315): a learnt bottleneck."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import nn

from fl_split.codecs.codec import Codec, Ratio
from fl_split.specs import STRICT


@dataclass(frozen=True, config=STRICT)
class BottleNet(Codec):
    """After BottleNet++: a small network narrows every token, another widens it again.

    Both have two layers, D -> m -> d' and d' -> m -> D with d' = round(ratio D) and
    m = (D + d') // 2, ReLU between, as in the ViT version of the ADC authors. The encoder
    belongs to the head, the decoder to the tail: they are trained, averaged, sent and
    counted with them, and stay in place in evaluation.

    Parameters
    ----------
    ratio : float
        d' / D.
    final_relu : bool
        End the decoder in a ReLU, as the ADC authors' code does: the tail then sees no
        negative number.
    """

    ratio: Ratio = 0.1
    final_relu: bool = False

    up: ClassVar[str] = "tokens (B, N, d') in fp32; labels; the encoder with the head"
    down: ClassVar[str] = "a gradient for every number that went up"

    def nominal_ratio(self, batch: float, numbers: int) -> float:
        """Return `ratio`."""
        return self.ratio

    def modules(self, width: int) -> tuple[nn.Module, nn.Module]:
        """Make encoder and decoder; weights come from torch's global generator."""
        narrow = max(1, round(self.ratio * width))
        middle = (width + narrow) // 2
        encoder = nn.Sequential(nn.Linear(width, middle), nn.ReLU(), nn.Linear(middle, narrow))
        decoder = nn.Sequential(nn.Linear(narrow, middle), nn.ReLU(), nn.Linear(middle, width))
        return encoder, decoder.append(nn.ReLU()) if self.final_relu else decoder
