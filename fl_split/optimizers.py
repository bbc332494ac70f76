"""Optimisers by spec string, with torch's own argument names: ``"adam(lr=0.001)"``."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fl_split.specs import STRICT
from fl_split.tables import Table

Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]


@runtime_checkable
class Optimizer(Protocol):
    """A description that makes a torch optimiser for one flat parameter vector."""

    def build(self, vector: nn.Parameter) -> torch.optim.Optimizer:
        """Return a fresh optimiser of `vector`."""
        ...


@dataclass(frozen=True, config=STRICT)
class SGD:
    """Stochastic gradient descent, with momentum and weight decay."""

    lr: Rate = 0.05
    momentum: Beta = 0.0
    weight_decay: Rate = 0.0

    def build(self, vector: nn.Parameter) -> torch.optim.Optimizer:
        """Return a fresh optimiser of `vector`."""
        return torch.optim.SGD(
            [vector], lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )


@dataclass(frozen=True, config=STRICT)
class Adam:
    """Adam (Kingma and Ba, 2015)."""

    lr: Rate = 0.001
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Rate = 1e-8
    weight_decay: Rate = 0.0

    def build(self, vector: nn.Parameter) -> torch.optim.Optimizer:
        """Return a fresh optimiser of `vector`."""
        return torch.optim.Adam(
            [vector], lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )


@dataclass(frozen=True, config=STRICT)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    Parameters
    ----------
    no_decay : bool
        Norms and biases, all that is of no matrix, do not decay.
    """

    lr: Rate = 0.001
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Rate = 1e-8
    weight_decay: Rate = 0.01
    no_decay: bool = False

    @property
    def decay_of_matrices(self) -> float:
        """Weight decay that :meth:`build` leaves to the caller: that of matrices alone."""
        return self.weight_decay if self.no_decay else 0.0

    def build(self, vector: nn.Parameter) -> torch.optim.Optimizer:
        """Return a fresh optimiser of `vector`; without decay if not all of it shall decay."""
        decay = 0.0 if self.no_decay else self.weight_decay
        return torch.optim.AdamW(
            [vector], lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=decay
        )


@dataclass(frozen=True)
class Restarting:
    """An optimiser that starts afresh with every step, as in the official SplitFed scripts."""

    optimizer: Any

    @property
    def decay_of_matrices(self) -> float:
        """That of the optimiser."""
        return getattr(self.optimizer, "decay_of_matrices", 0.0)

    def build(self, vector: nn.Parameter) -> torch.optim.Optimizer:
        """Return an optimiser of `vector` that forgets its state before each step."""
        found: torch.optim.Optimizer = self.optimizer.build(vector)
        found.register_step_pre_hook(lambda optimizer, *_: optimizer.state.clear())
        return found


def scaled(optimizer: Optimizer, factor: float) -> Optimizer:
    """Return `optimizer` with a learning rate so many times as large."""
    spec: Any = optimizer
    return replace(spec, lr=spec.lr * factor)


def moments(optimizer: torch.optim.Optimizer, vector: nn.Parameter) -> dict[str, Tensor]:
    """All that `optimizer` remembers of `vector`, by torch's own names."""
    return {k: v for k, v in optimizer.state[vector].items() if v is not None}


def set_moments(
    optimizer: torch.optim.Optimizer, vector: nn.Parameter, found: dict[str, Tensor]
) -> None:
    """Make `optimizer` remember what :func:`moments` returned."""
    optimizer.state.pop(vector, None)
    if found:
        optimizer.state[vector] = dict(found)


OPTIMIZERS: Table[type[Optimizer]] = Table(
    Optimizer, "fl_split.optimizers", {"adam": Adam, "adamw": AdamW, "sgd": SGD}
)
