"""SCAFFOLD (Karimireddy et al., ICML 2020, arXiv 1910.06378): control variates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.exchange.local_round import LocalRound
from fl_split.exchange.protocol import Exchange
from fl_split.exchange.records import HEAD, TAIL, Number, Weights
from fl_split.exchange.whole import Whole
from fl_split.models.cut import Head
from fl_split.specs import STRICT
from strategies.fedavg import FedAvg
from strategies.server.aggregation import Update
from strategies.server.round import Round

VARIATES = {HEAD: "head-variate", TAIL: "tail-variate"}
"""Names of control variates: of the server's among global weights, of a client's in its memory."""


class ControlledRound(LocalRound):
    """Local training on g + c - c_k; c_k becomes the mean of the round's own gradients g."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.own = {name: self.kept(key, name) for name, key in VARIATES.items()}
        self.corrections = {k: self.sent(key) - self.own[k] for k, key in VARIATES.items()}
        self.sums = {name: own.new_zeros(own.shape) for name, own in self.own.items()}

    def corrected(self, name: str, gradient: Tensor) -> Tensor:
        """Add c - c_k, (P,)."""
        self.sums[name] += gradient
        return gradient + self.corrections[name]

    def end(self, steps: int) -> tuple[Mapping[str, Weights], Mapping[str, Number]]:
        """Keep the new c_k; send its change."""
        changes = {}
        for name, key in VARIATES.items():
            new = self.sums[name] / steps
            changes[key] = Weights.of((new - self.own[name]).cpu().numpy())
            self.keep(key, new)
        return changes, {}


@plain(frozen=True)
class Controlled(Whole):
    """Training of whole models with control variates, which travel both ways."""

    local = ControlledRound
    copies_kept = 3  # the client's variate, the correction, the sum of gradients

    def travelling(self, weights: Mapping[str, Weights]) -> dict[str, Weights]:
        """Return weights and the server's variates, which are zero at first."""
        found = super().travelling(weights)
        for name, key in VARIATES.items():
            zeros = Weights.of(np.zeros(weights[name].shape, np.float32))
            found[key] = weights.get(key, zeros)
        return found


@dataclass(frozen=True, config=STRICT)
class Scaffold(FedAvg):
    """FedAvg whose clients step on g + c - c_k: the server's control variate c, their own c_k.

    Option II of the paper, c_k <- c_k - c + (x - y_k) / (K lr), is the mean of a client's own
    gradients in its K steps of plain SGD at one rate. This mean is what clients take. It needs
    no learning rate, so it has a meaning with momentum and Adam, which the paper does not treat:
    there g + c - c_k is what the optimiser gets. It is taken before clipping and weight decay.

    Weights and variates are averaged with n_k / n, so that corrections cancel; the paper has
    all clients count alike. Its global learning rate is 1. Variates are sent and counted beside
    the weights, both ways: twice the bytes of `fedavg`. A client whose end comes too late for
    the server keeps its new c_k all the same.

    A full-model baseline. With a copy of the tail per client (`sflv1`) it would be the same to
    the bit; a tail that all clients share has no drift of its own to correct, and the paper says
    nothing of heads that drift alone.
    """

    needs_mean = True

    def exchange(self, head: Head) -> Exchange:
        """Clients train whole models, with control variates."""
        return Controlled()

    def aggregate(self, round: Round, updates: Sequence[Update]) -> dict[str, Weights]:
        """Average weights; c <- c + sum_k (n_k / n) change_k, n of all clients of the run."""
        found = round.average(
            [replace(u, weights={name: u.weights[name] for name in VARIATES}) for u in updates]
        )
        sent = round.exchange.travelling(round.weights)
        for key in VARIATES.values():
            change = round.part_of_mean(updates, key)
            found[key] = Weights.of((sent[key].numpy() + change).astype(np.float32))
        return found
