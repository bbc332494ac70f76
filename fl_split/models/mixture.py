"""A mixture of experts in the place of a block's MLP: each token runs through a few of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_split.models.selector import ROUNDING


@dataclass(frozen=True)
class Routing:
    """Where a router sends T tokens.

    Attributes
    ----------
    chosen : Tensor
        Numbers of the experts of each token (T, k), the best first.
    weights : Tensor
        What their outputs are multiplied by (T, k).
    fits : Tensor
        Whether the expert has room for the token (T, k).
    probabilities : Tensor
        Of all experts (T, E).
    balance : float
        Weight of :meth:`balance_loss`.
    """

    chosen: Tensor
    weights: Tensor
    fits: Tensor
    probabilities: Tensor
    balance: float

    def balance_loss(self) -> Tensor:
        """Return balance E sum_e f_e P_e, a scalar (Switch Transformer, equation 4).

        f_e is the share of choices that fell on expert e, P_e its mean probability. It is
        `balance` where both are uniform, and E times as much where all tokens go to one expert.
        """
        count = self.probabilities.shape[1]
        shares = torch.bincount(self.chosen.flatten(), minlength=count) / self.chosen.numel()
        return self.balance * count * (shares * self.probabilities.mean(dim=0)).sum()


_FOUND: ContextVar[list[Routing] | None] = ContextVar("routings", default=None)


@contextmanager
def watching() -> Iterator[list[Routing]]:
    """Collect the routings of all forward passes of this thread in the block, in their order."""
    found: list[Routing] = []
    token = _FOUND.set(found)
    try:
        yield found
    finally:
        _FOUND.reset(token)


def balance_loss(routings: Sequence[Routing]) -> Tensor:
    """Return the sum of the balance losses of one batch."""
    return torch.stack([routing.balance_loss() for routing in routings]).sum()


class Router(nn.Module, ABC):
    """Chooses `chosen` of `count` experts for each token; in fp32 in every precision.

    Parameters
    ----------
    width : int
        D of the tokens.
    capacity : float
        An expert has room for ceil(capacity k T / E) of the T tokens of a batch. First choices
        come before second ones, earlier tokens before later ones.
    balance : float
        Weight of the balance loss.
    draw : torch.Generator
        Draws the weights: normal, of variance 0.1 / D as in the Switch Transformer.
    """

    def __init__(
        self,
        width: int,
        count: int,
        chosen: int,
        capacity: float,
        balance: float,
        draw: torch.Generator,
    ) -> None:
        super().__init__()
        self.count, self.chosen, self.capacity, self.balance = count, chosen, capacity, balance
        self.layer = nn.Linear(width, count, bias=False, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            self.layer.weight.normal_(std=math.sqrt(0.1 / width), generator=draw)

    @property
    @abstractmethod
    def draws(self) -> bool:
        """Whether a training forward draws random numbers."""

    @abstractmethod
    def logits(self, tokens: Tensor) -> Tensor:
        """Return logits (T, E) of tokens (T, D), in training with noise."""

    @abstractmethod
    def weights(self, probabilities: Tensor) -> Tensor:
        """Return the weights (T, k) of the chosen experts, given their probabilities (T, k)."""

    def forward(self, tokens: Tensor) -> Routing:
        """Route tokens (T, D)."""
        with torch.autocast(tokens.device.type, enabled=False):
            logits = self.logits(tokens.float())
            probabilities = logits.softmax(dim=1)
            chosen = logits.topk(self.chosen, dim=1).indices
            weights = self.weights(probabilities.gather(1, chosen))
        return Routing(chosen, weights, self._fits(chosen), probabilities, self.balance)

    def _fits(self, chosen: Tensor) -> Tensor:
        """Tell which choices (T, k) find room."""
        room = math.ceil(min(self.capacity, self.count) * chosen.numel() / self.count - ROUNDING)
        in_turn = chosen.T.flatten()
        so_far = functional.one_hot(in_turn, self.count).cumsum(dim=0)
        places = so_far.gather(1, in_turn.unsqueeze(1)).squeeze(1)
        return (places <= room).view(self.chosen, -1).T


class Mixture(nn.Module):
    """Experts and their router: y = sum of weight_e expert_e(x) over the experts of a token.

    A token runs through its own experts only. In training, what an expert has no room for gives
    nothing, so that the block hands the token on by its residual path. In evaluation there is
    room for all: then no sample's result depends on the samples beside it.

    Parameters
    ----------
    experts : sequence of nn.Module
        E modules of the same shape.
    """

    def __init__(self, experts: Sequence[nn.Module], router: Router) -> None:
        super().__init__()
        self.router = router
        self.experts = nn.ModuleList(experts)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, T, D) for tokens (B, T, D)."""
        flat = tokens.reshape(-1, tokens.shape[-1])
        routing: Routing = self.router(flat)
        found = _FOUND.get()
        if found is not None:
            found.append(routing)
        total = torch.zeros_like(flat, dtype=routing.weights.dtype)
        for number, expert in enumerate(self.experts):
            is_sent = routing.chosen == number
            rows, places = (is_sent & routing.fits if self.training else is_sent).nonzero().T
            if len(rows):
                output = expert(flat[rows]) * routing.weights[rows, places].unsqueeze(1)
                total = total.index_add(0, rows, output.to(total.dtype))
        return total.view(tokens.shape)

    def idle(self) -> set[nn.Module]:
        """Return the modules of as many experts as a token does not run through."""
        return {part for expert in self.experts[self.router.chosen :] for part in expert.modules()}
