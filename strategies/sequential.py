"""Vanilla split learning (Gupta and Raskar, 2018): one head handed from client to client."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from fl_split.optimizers import Optimizer, Restarting
from fl_split.specs import STRICT
from strategies.server.aggregation import Update
from strategies.server.round import Round
from strategies.server.strategy import Strategy
from strategies.sflv2 import Order


@dataclass(frozen=True, config=STRICT)
class Sequential(Strategy):
    """Clients train one after another; each starts from the head its predecessor left.

    The head travels through the server, so a hand-over costs one head up and one down.
    The tail steps after every batch; nothing is averaged.

    Parameters
    ----------
    order : "random", "cyclic" or "reverse"
        Anew each round, by partition id, or by falling partition id.
    official_scripts : bool
        As the official scripts: the tail's optimiser starts afresh with every batch.
    """

    order: Order = "random"
    official_scripts: bool = False

    averages = False
    mixes_cuts = True
    serves_in_turn = True

    def tail_optimizer(self, optimizer: Optimizer, clients: int) -> Optimizer:
        """Return the experiment's, or one that starts afresh with every batch."""
        return Restarting(optimizer) if self.official_scripts else optimizer

    def train_round(self, round: Round) -> list[Update]:
        """Visit one client after the other; a dropped client hands nothing over."""
        head, last = round.head, []
        for client in round.order(self.order):
            round.begin([client], head=head)
            while (arrival := round.payload(client)) is not None:
                round.serve(client, arrival)
            if client in round.ends:
                last = [round.ends[client]]
                head = last[0].weights["head"]
        return last
