"""Experts of the Switch Transformer (Fedus et al., JMLR 2022, arXiv 2101.03961)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.experts.gating import Balance, Capacity, Count, Gating
from fl_split.models.mixture import Router
from fl_split.specs import STRICT


class SwitchRouter(Router):
    """Sends each token to the likeliest expert, and weights its output by the probability.

    Parameters
    ----------
    jitter : float
        In training what the router reads is multiplied by numbers uniform in 1 -+ jitter.
    """

    def __init__(
        self,
        width: int,
        count: int,
        capacity: float,
        balance: float,
        jitter: float,
        draw: torch.Generator,
    ) -> None:
        super().__init__(width, count, 1, capacity, balance, draw)
        self.jitter = jitter

    @property
    def draws(self) -> bool:
        """True with jitter."""
        return self.jitter > 0

    def logits(self, tokens: Tensor) -> Tensor:
        """Return logits (T, E) of tokens (T, D)."""
        if self.training and self.draws:
            drawn = torch.empty(tokens.shape, device="cpu")
            tokens = tokens * drawn.uniform_(1 - self.jitter, 1 + self.jitter).to(tokens.device)
        return self.layer(tokens)

    def weights(self, probabilities: Tensor) -> Tensor:
        """Return the probabilities themselves (T, 1): by them the router learns from the task."""
        return probabilities


@dataclass(frozen=True, config=STRICT)
class Switch(Gating):
    """One of `count` experts for each token, in the place of the MLP of tail blocks.

    The output of an expert is multiplied by its probability p, so a block begins with a share
    of what its MLP gave, also where the experts are copies of a trained one.

    Parameters
    ----------
    count : int
        Experts of a block, each of the shape of its MLP.
    capacity : float
        An expert has room for ceil(capacity T / count) of the T tokens of a client's batch. With
        `count` there is always room.
    balance : float
        Weight of the balance loss in what is minimised; 0.01 in the paper.
    jitter : float
        Noise on what the router reads in training: times 1 -+ jitter.
    blocks : int or str
        Number of a block of the server, or numbers, as ``'3, 4'``, or ``'all'``.
    """

    count: Count = 4
    capacity: Capacity = 1.25
    balance: Balance = 0.01
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.01
    blocks: int | str = "all"

    def router(self, width: int, draw: torch.Generator) -> SwitchRouter:
        """Return a router of tokens of `width` numbers."""
        return SwitchRouter(width, self.count, self.capacity, self.balance, self.jitter, draw)
