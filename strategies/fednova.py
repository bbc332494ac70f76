"""FedNova (Wang et al., NeurIPS 2020, arXiv 2007.07481): clients that step more count no more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain
from dataclasses import replace

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import nn

from fl_split.exchange.local_round import LocalRound
from fl_split.exchange.protocol import Exchange
from fl_split.exchange.records import HEAD, TAIL, Number, Weights
from fl_split.exchange.whole import Whole
from fl_split.flat import Flat
from fl_split.models.cut import Head
from fl_split.recipe.descent import Descent, finish
from fl_split.recipe.phases import Phases
from fl_split.recipe.schedules import Moment
from fl_split.specs import STRICT
from strategies.fedavg import FedAvg
from strategies.server.aggregation import Update
from strategies.server.round import Round

REACHES = {HEAD: "head-reach", TAIL: "tail-reach"}
"""Numbers that a client tells: lr ||a||_1 of both halves."""


def reach(descent: Descent, number: int, steps: int) -> float:
    """Return lr ||a||_1: how far gradients of one would have moved a weight in a round.

    The optimiser itself is run on them, with its schedule, decay and accumulation. Plain SGD
    gives K lr in K steps, momentum rho gives lr (K - rho (1 - rho^K) / (1 - rho)) / (1 - rho).
    """
    weight = Flat(nn.ParameterList([torch.zeros(1, device="cpu")]))
    shadow = Descent(weight, descent.spec, replace(descent.recipe, phases=Phases()))
    moments = [Moment(number, step, 1, steps) for step in range(steps)]
    for moment in moments:
        shadow.step(torch.ones(1, device="cpu"), moment)
    finish([shadow], moments[-1])
    return -float(weight.vector.detach())


class ReachingRound(LocalRound):
    """Local training that tells how far its steps reach."""

    def end(self, steps: int) -> tuple[Mapping[str, Weights], Mapping[str, Number]]:
        """Tell lr ||a||_1 of head and tail."""
        number = int(self.client.at.round)
        return {}, {key: reach(self.descents[name], number, steps) for name, key in REACHES.items()}


@plain(frozen=True)
class Reaching(Whole):
    """Training of whole models by clients that tell how far their steps reach."""

    local = ReachingRound


@dataclass(frozen=True, config=STRICT)
class FedNova(FedAvg):
    """FedAvg of normalised updates: (x - y_k) / ||a_k||_1, times the mean of ||a_k||_1.

    a_k says how much each gradient of client k counts in x - y_k = lr G_k a_k. It follows from
    the optimiser, its momentum, schedule and weight decay; see :func:`reach`. Head and tail have
    their own. Equal steps give FedAvg to the bit. Adam, for which the paper has no a_k, moves a
    weight by lr a step under gradients of one: clients count by their steps. Updates are
    normalised before any `aggregation`, so that server momentum goes with it. Bytes are those
    of `fedavg`.

    A full-model baseline. With a copy of the tail per client (`sflv1`) it would be the same to
    the bit; clients that share a tail all take part in each of its steps, and there is nothing
    to normalise.
    """

    def exchange(self, head: Head) -> Exchange:
        """Clients train whole models."""
        return Reaching()

    def train_round(self, round: Round) -> list[Update]:
        """Send the model, collect the trained ones; drop who tells no possible reach."""
        return [update for update in super().train_round(round) if self._is_possible(round, update)]

    def aggregate(self, round: Round, updates: Sequence[Update]) -> dict[str, Weights]:
        """Average normalised updates."""
        return round.average([_normalised(round, update, updates) for update in updates])

    def _is_possible(self, round: Round, update: Update) -> bool:
        for key in REACHES.values():
            told = update.numbers.get(key)
            if not isinstance(told, float) or not 0 <= told < math.inf:
                round.mailbox.drop(update.client, f"sent a {key} of {told}")
                return False
        return True


def _normalised(round: Round, update: Update, updates: Sequence[Update]) -> Update:
    """Return x + (y_k - x) tau / ||a_k||_1, where tau = sum_k (n_k / n) ||a_k||_1."""
    weights, total = dict(update.weights), sum(one.samples for one in updates)
    for name, key in REACHES.items():
        own = _number(update, key)
        if not own:  # nothing has moved
            continue
        share = math.fsum(one.samples * (_number(one, key) / own) for one in updates) / total
        start, end = round.weights[name].numpy(), weights[name].numpy()
        found = start + (end - start) * np.float32(share) if share != 1 else end.copy()
        if (where := round.statistics[name]) is not None:
            found[where.cpu().numpy()] = end[where.cpu().numpy()]
        weights[name] = Weights.of(found)
    return replace(update, weights=weights)


def _number(update: Update, key: str) -> float:
    told = update.numbers[key]
    assert isinstance(told, float)
    return told
