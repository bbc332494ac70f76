"""Optimisers by spec string, with torch's own argument names: ``"adam(lr=0.001)"``."""

from __future__ import annotations

from typing import Annotated, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from fl_split.specs import STRICT

Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]


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
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    lr: Rate = 0.001
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Rate = 1e-8
    weight_decay: Rate = 0.01

    def build(self, vector: nn.Parameter) -> torch.optim.Optimizer:
        """Return a fresh optimiser of `vector`."""
        return torch.optim.AdamW(
            [vector], lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )


OPTIMIZERS = {"adam": Adam, "adamw": AdamW, "sgd": SGD}
