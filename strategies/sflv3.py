"""SplitFed V3 (Gawali et al., 2021, arXiv 2012.12591): private heads, tails averaged."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from strategies.server.aggregation import Update
from strategies.server.round import Round
from strategies.server.strategy import Strategy


@dataclass(frozen=True, config=STRICT)
class SFLV3(Strategy):
    """Every client trains its own head against its own copy of the tail; only tails are averaged.

    Heads and their optimisers stay with the clients and never travel. Copies start each
    round from the global tail with a fresh optimiser and are averaged, weights n_k/n.
    Accuracy is the mean over all clients, each with its own head.
    """

    keeps_models = True

    def train_round(self, round: Round) -> list[Update]:
        """Serve payloads as they come: no client's tail depends on another's."""
        tails = dict(zip(round.clients, round.tail.forks(len(round.clients)), strict=True))
        round.begin(round.clients)
        for arrivals in round.arrivals():
            round.serve_apart(tails, arrivals)
        return [u.including(tail=tails[u.client].weights()) for u in round.updates()]
