"""An error-tolerant bottleneck for bits, after SemanticNN (arXiv 2511.11038)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fl_split.codecs.codec import Codec, Ratio, Received, Smashed
from fl_split.codecs.conditioned import with_room, with_state, without_room
from fl_split.payload import Payload
from fl_split.specs import STRICT

WORDS, CENTRES = "words", "centres"
"""Side tensors: a codeword (B, N, d) for every value, and what the codewords stand for."""

LEAST_DECADE = -6
"""Rates of bit errors below 10 to this power are as good as none."""

SHARPNESS = 10.0
"""How fast a soft assignment falls with the distance from a centre."""

SMALLEST = 1e-6
"""Root mean square of a sample below which it is not made larger."""


@dataclass(frozen=True, config=STRICT)
class Semantic(Codec):
    """After SemanticNN: few values per token, each the nearest of some learnt centres.

    A linear layer narrows every token to d = round(ratio D) values. They are scaled to mean
    square 1 per sample, and each goes up as the codeword of its nearest centre, in log2(levels)
    bits. Codewords of neighbouring centres differ in one bit (Gray code). The centres go up, too.
    The decoder, linear, norm, linear, knows how many bits are wrong: `condition` scales and shifts
    its hidden features by the rate of errors (FiLM).

    Gradients pass the rounding as if there were none. A centre gets those of all values, each by
    the centre's share of it: the softmax over centres of -10 times the distance. Beside the
    server's loss a client minimises `balance` times the mean square deviation of the centres' mean
    shares from 1 / levels. That loss is in no column, and in fp16, whose losses are scaled, it
    hardly counts.

    What is not the paper's: its convolution merges patches, and we narrow each token by itself; a
    linear layer has no gain control (GDN); its first stage, a denoising autoencoder, would need
    the smashed data at the server and is left out, as is the loss on attributions. Gradients that
    pass the rounding are not clamped to [-1, 1], and shares fall off ten times as fast. In the
    authors' code centres and balance get no gradient, and the decoder ends in a sigmoid; here
    they do, and it does not.

    Parameters
    ----------
    levels : int
        Centres, at first the quantiles of a normal distribution.
    ratio : float
        d / D.
    condition : bool
        Whether the decoder knows the rate of bit errors. Over other channels it is told 0.
    balance : float
        Weight of the loss that keeps all centres in use.
    """

    levels: Literal[2, 4, 8, 16, 32, 64] = 8
    ratio: Ratio = 0.125
    condition: bool = True
    balance: Annotated[float, Field(ge=0)] = 2.0

    exposed: ClassVar = (WORDS,)
    up: ClassVar[str] = "d codewords per token in log2(levels) bits; centres; labels; the encoder"
    down: ClassVar[str] = "a gradient for every codeword that went up"

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Send the values, which are centres already."""
        values = without_room(smashed.tokens, self.condition)
        return Payload({"tokens": values}, {"labels": smashed.labels})

    def decode(self, payload: Payload) -> Received:
        """Add what is known of the channel."""
        values = payload.carried["tokens"]
        tokens = with_state(values, self.condition, _errors(payload))
        return Received(tokens, payload.side["labels"].long())

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Replace values (B, N, d) by codewords, and the centres in use, in order.

        Raises
        ------
        ValueError
            There are more values than centres: they do not come from the encoder.
        """
        centres, places = payload.carried["tokens"].detach().unique(return_inverse=True)
        if len(centres) > self.levels:
            raise ValueError(f"{len(centres)} values for {self.levels} centres")
        return Payload({}, {**payload.side, WORDS: places ^ (places >> 1), CENTRES: centres})

    def unpack(self, packed: Payload) -> Payload:
        """Return the centres that the codewords stand for; one that stands for none, the last."""
        side = dict(packed.side)
        places, centres = side.pop(WORDS).long(), side.pop(CENTRES).float()
        for shift in (1, 2, 4):
            places = places ^ (places >> shift)
        return Payload({"tokens": centres[places.clamp(max=len(centres) - 1)]}, side)

    def fill(self, packed: Payload, name: str) -> Tensor:
        """Return the codeword of the centre nearest to zero."""
        place = packed.side[CENTRES].abs().argmin()
        return place ^ (place >> 1)

    def value_of(self, name: str) -> str:
        """Return the values that codewords stand for."""
        return "tokens" if name == WORDS else name

    def modules(self, width: int) -> tuple[nn.Module, nn.Module]:
        """Make encoder and decoder; weights come from torch's global generator."""
        narrow = max(1, round(self.ratio * width))
        encoder = Encoder(width, narrow, self.levels, self.balance, self.condition)
        return encoder, Decoder(narrow, width, self.condition)


class Encoder(nn.Module):
    """Makes values (..., d) of tokens (..., D), each of them a centre."""

    centres: Tensor

    def __init__(
        self, width: int, narrow: int, levels: int, balance: float, is_conditioned: bool
    ) -> None:
        super().__init__()
        self.narrow = nn.Linear(width, narrow)
        quantiles = (torch.arange(levels, device="cpu") + 0.5) / levels
        self.centres = nn.Parameter(torch.special.ndtri(quantiles))
        self.levels, self.balance, self.is_conditioned = levels, balance, is_conditioned

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the nearest centres, and room for the state of the channel."""
        values = self.narrow(tokens)
        power = values.square().mean(dim=(-2, -1), keepdim=True)
        values = values / power.sqrt().clamp(min=SMALLEST)
        centres = self.centres.reshape(-1, 1, self.levels)  # in a stack one row for each client
        distances = (values.reshape(len(centres), -1, 1) - centres).abs()
        nearest = distances.argmin(dim=2, keepdim=True)
        found = centres.detach().expand_as(distances).gather(2, nearest)
        if torch.is_grad_enabled():
            shares = (-SHARPNESS * distances).softmax(dim=2)
            soft = (shares.detach() * centres).sum(dim=2, keepdim=True)
            found = found + (soft - soft.detach())
            if self.training and self.balance:
                uneven = (shares.mean(dim=1) - 1 / self.levels).square().mean(dim=1).sum()
                found = _WithLoss.apply(found, self.balance * uneven)
        found = found.view(values.shape) + (values - values.detach())
        return with_room(found, self.is_conditioned)


class _WithLoss(torch.autograd.Function):
    """Passes values on; whoever differentiates them minimises a loss beside."""

    @staticmethod
    def forward(context: Any, values: Tensor, loss: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient.new_ones(())


class Decoder(nn.Module):
    """Makes tokens (..., D) of values (..., d), given the state of the channel or not."""

    def __init__(self, narrow: int, width: int, is_conditioned: bool) -> None:
        super().__init__()
        middle = (narrow + width) // 2
        self.first, self.last = nn.Linear(narrow, middle), nn.Linear(middle, width)
        self.norm = nn.LayerNorm(middle)
        self.film = nn.Linear(1, 2 * middle) if is_conditioned else None
        if self.film is not None:  # at first as if it knew nothing
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def forward(self, values: Tensor) -> Tensor:
        """Return tokens; what they are is not bounded."""
        hidden = self.norm(self.first(without_room(values, self.film is not None)))
        if self.film is not None:
            scale, shift = self.film(values[..., -1:]).chunk(2, dim=-1)
            hidden = hidden * (1 + scale) + shift
        found: Tensor = self.last(hidden.relu())
        return found


def _errors(payload: Payload) -> Tensor | None:
    """Return log10 of the rate of bit errors, 0 at the least rate and 1 at a rate of 1."""
    rate = payload.channel_state.get("ber")
    return None if rate is None else 1 - rate.clamp(min=10**LEAST_DECADE).log10() / LEAST_DECADE
