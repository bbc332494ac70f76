"""Noisy top-k gating (Shazeer et al., ICLR 2017, arXiv 1701.06538)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from fl_split.experts.gating import Balance, Capacity, Count, Gating
from fl_split.models.mixture import Router
from fl_split.specs import STRICT


class NoisyRouter(Router):
    """Sends each token to k experts; their weights are the softmax over these k.

    In training normal noise is added to the logits, of deviation softplus(W x), where the
    matrix W begins at 0 and is trained.
    """

    def __init__(
        self,
        width: int,
        count: int,
        chosen: int,
        capacity: float,
        balance: float,
        noise: bool,
        draw: torch.Generator,
    ) -> None:
        super().__init__(width, count, chosen, capacity, balance, draw)
        self.deviations: nn.Linear | None = None
        if noise:
            self.deviations = nn.Linear(width, count, bias=False, device="meta")
            self.deviations.to_empty(device="cpu")
            nn.init.zeros_(self.deviations.weight)

    @property
    def draws(self) -> bool:
        """True with noise."""
        return self.deviations is not None

    def logits(self, tokens: Tensor) -> Tensor:
        """Return logits (T, E) of tokens (T, D)."""
        clean: Tensor = self.layer(tokens)
        if self.deviations is None or not self.training:
            return clean
        drawn = torch.randn(clean.shape, device="cpu").to(clean.device)
        return clean + drawn * functional.softplus(self.deviations(tokens))

    def weights(self, probabilities: Tensor) -> Tensor:
        """Return shares (T, k) that add up to 1."""
        return probabilities / probabilities.sum(dim=1, keepdim=True)


@dataclass(frozen=True, config=STRICT)
class NoisyTopK(Gating):
    """Several of `count` experts for each token, in the place of the MLP of tail blocks.

    The weights of a token's experts add up to 1, so experts that are copies of a trained MLP
    begin as that MLP. Balance loss and capacity are those of the Switch Transformer, in the
    place of the paper's two losses.

    Parameters
    ----------
    count : int
        Experts of a block, each of the shape of its MLP.
    chosen : int
        Experts of a token, from 2: the weight of a single one is 1, whatever its router says.
    noise : bool
        Add noise of a trained deviation to the logits, in training.
    capacity : float
        An expert has room for ceil(capacity chosen T / count) of the T tokens of a client's
        batch. With `count` there is always room.
    balance : float
        Weight of the balance loss in what is minimised.
    blocks : int or str
        Number of a block of the server, or numbers, as ``'3, 4'``, or ``'all'``.
    """

    count: Count = 4
    chosen: Annotated[int, Field(ge=2)] = 2
    noise: bool = True
    capacity: Capacity = 1.25
    balance: Balance = 0.01
    blocks: int | str = "all"

    @model_validator(mode="after")
    def _are_enough(self) -> NoisyTopK:
        if self.chosen > self.count:
            raise ValueError(f"chosen must be at most count={self.count}, got {self.chosen}")
        return self

    def router(self, width: int, draw: torch.Generator) -> NoisyRouter:
        """Return a router of tokens of `width` numbers."""
        settings = self.count, self.chosen, self.capacity, self.balance, self.noise
        return NoisyRouter(width, *settings, draw)
