"""Joint source-channel coding of tokens (arXiv 2505.17604): complex symbols, sent as they are."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from fl_split.codecs.codec import Codec, Ratio, Received, Smashed
from fl_split.codecs.conditioned import with_room, with_state, without_room
from fl_split.payload import Payload, check_size
from fl_split.specs import STRICT

LAYERS = 3
"""Of each of the three networks."""

ROUNDING = 1e-9
"""What a product of floats may lack of a whole number."""

SMALLEST = 1e-6
"""Norm of a token below which it is not made longer."""


@dataclass(frozen=True, config=STRICT)
class JSCC(Codec):
    """After ASTC: d complex symbols for every token, learnt with the noise of the channel.

    Two networks of three linear layers, whose widths go evenly from D to d = floor(ratio D), at
    least 1, with ReLU between, give the real and the imaginary parts. Each token is scaled to
    norm 1, so that all tokens have the same signal-to-noise ratio. A third network, of three
    layers, makes a token of width D of the 2 d real numbers that arrive. They learn together with
    head and tail, through the noise of `awgn` and `rayleigh`.

    With `ratios` one model is for all of them. The first symbols are the most important: a ratio
    below the largest sends the first floor(d ratio / largest) of the d symbols, and the others
    are zero at the receiver. In training each message draws its ratio, from those given. Where
    clients train whole models nothing is sent, and the largest ratio alone is trained.

    Ours are `condition` and `ratios`. The paper draws a noise level per sample and trains a model
    for each ratio, with a frozen client.

    Parameters
    ----------
    ratio : float
        d / D; with `ratios` the one of them that evaluation and inference take.
    ratios : list of float
        What training draws from, if the model is for several.
    condition : bool
        Whether the decoder is told how noisy each sample is: the share of noise in the power that
        arrives, 1 / (1 + SNR), as one more input. Over other channels it is told 0.
    """

    ratio: Ratio = 0.25
    ratios: Annotated[tuple[Ratio, ...], Field(strict=False)] = ()
    condition: bool = True

    up: ClassVar[str] = "2 d numbers per token in fp32, or as noisy symbols; labels; the encoder"
    down: ClassVar[str] = "a gradient for every number that went up"

    def __post_init__(self) -> None:
        if self.ratios and self.ratio not in self.ratios:
            raise ValueError(f"ratio={self.ratio:g} is none of ratios={list(self.ratios)}")

    @property
    def draws_size(self) -> bool:  # type: ignore[override]
        """Whether there are several ratios."""
        return len(self.ratios) > 1

    @property
    def largest(self) -> float:
        """The largest ratio."""
        return max(self.ratios, default=self.ratio)

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Keep the first symbols, and scale what is kept of each token to norm 1."""
        symbols, side = without_room(smashed.tokens, self.condition), {"labels": smashed.labels}
        width, ratio = symbols.shape[2], self.ratio
        if self.draws_size and symbols.requires_grad:  # in training alone
            count = len(self.ratios)
            ratio = self.ratios[int(torch.randint(count, (), generator=generator, device="cpu"))]
        kept = 2 * self._kept(width // 2, ratio)
        if kept < width:
            side["width"] = torch.tensor(width, device=smashed.labels.device)
        return Payload({"tokens": unit(symbols[..., :kept])}, side)

    def decode(self, payload: Payload) -> Received:
        """Fill up with zeros, and add what is known of the noise."""
        symbols = payload.carried["tokens"]
        if "width" in payload.side:
            width = int(payload.side["width"])
            check_size(*symbols.shape[:2], width)
            if width < symbols.shape[2]:
                raise ValueError(f"{symbols.shape[2]} numbers of a token of {width}")
            symbols = functional.pad(symbols, (0, width - symbols.shape[2]))
        tokens = with_state(symbols, self.condition, _noise(payload))
        return Received(tokens, payload.side["labels"].long())

    def nominal_ratio(self, batch: float, numbers: int) -> float:
        """Return twice the ratio, of several the mean: a symbol is two numbers."""
        found = self.ratios or (self.ratio,)
        return 2 * sum(found) / len(found)

    def modules(self, width: int) -> tuple[nn.Module, nn.Module]:
        """Make encoder and decoder; weights come from torch's global generator."""
        symbols = max(1, math.floor(self.largest * width + ROUNDING))
        encoder = Encoder(width, symbols, self._kept(symbols, self.ratio), self.condition)
        return encoder, network(2 * symbols + self.condition, width)

    def _kept(self, symbols: int, ratio: float) -> int:
        """Return how many of so many symbols a ratio sends."""
        return max(1, math.floor(symbols * ratio / self.largest + ROUNDING))


class Encoder(nn.Module):
    """Makes symbols (..., 2 d) of tokens (..., D): the real part of each, then the imaginary one.

    In evaluation all symbols but the first `kept` are zero, as for a receiver.
    """

    def __init__(self, width: int, symbols: int, kept: int, is_conditioned: bool) -> None:
        super().__init__()
        self.real, self.imaginary = network(width, symbols), network(width, symbols)
        self.kept, self.is_conditioned = kept, is_conditioned

    def forward(self, tokens: Tensor) -> Tensor:
        """Return symbols of norm 1, and room for the state of the channel."""
        parts = [self.real(tokens), self.imaginary(tokens)]
        symbols = torch.stack(parts, dim=-1).flatten(-2)
        if not self.training:
            left = symbols.shape[-1] - 2 * self.kept
            symbols = functional.pad(symbols[..., : 2 * self.kept], (0, left))
        return with_room(unit(symbols), self.is_conditioned)


def network(inputs: int, outputs: int) -> nn.Sequential:
    """Return linear layers whose widths go evenly from `inputs` to `outputs`, ReLU between.

    Weights are drawn after He et al. (2015), without biases: with torch's own, smaller ones
    biases drown the tokens after six layers, and learning begins late.
    """
    step = (outputs - inputs) / LAYERS
    widths = [round(inputs + step * layer) for layer in range(LAYERS + 1)]
    layers: list[nn.Module] = []
    for one, following in pairwise(widths):
        layer = nn.Linear(one, following)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def unit(symbols: Tensor) -> Tensor:
    """Scale each token (..., 2 d) to norm 1."""
    return symbols / symbols.norm(dim=-1, keepdim=True).clamp(min=SMALLEST)


def _noise(payload: Payload) -> Tensor | None:
    """Return the share of noise in the power of each sample (B,), if the receiver knows it."""
    snr_db = payload.channel_state.get("snr_db")
    return None if snr_db is None else 1 / (1 + 10 ** (snr_db / 10))
