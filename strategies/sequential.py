"""Vanilla split learning (Gupta and Raskar, 2018): one head handed from client to client."""

from __future__ import annotations

from flwr.app import ArrayRecord, Message
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from strategies.server import messages
from strategies.server.round import Round
from strategies.server.strategy import SplitStrategy
from strategies.sflv2 import Order


@dataclass(frozen=True, config=STRICT)
class Sequential(SplitStrategy):
    """Clients train one after another; each starts from the head its predecessor left.

    The head travels through the server, so a hand-over costs one head up and one down.
    The tail steps after every batch; nothing is averaged.

    Parameters
    ----------
    order : "random", "cyclic" or "reverse"
        Anew each round, by partition id, or by falling partition id.
    compat : bool
        As the official scripts: the tail's optimiser starts afresh with every batch.
    """

    order: Order = "random"
    compat: bool = False

    @property
    def averages(self) -> bool:
        """Nothing is averaged."""
        return False

    def train_round(self, round: Round) -> list[Message]:
        """Visit one client after the other; a dropped client hands nothing over."""
        head, last = round.head, []
        round.tail.restarts = self.compat
        for client in round.order(self.order):
            round.begin([client], head)
            step = 0
            while (payload := round.payload(client)) is not None:
                round.serve(client, payload, step)
                step += 1
            if client in round.finals:
                last = [round.finals[client]]
                head = messages.vector(last[0], messages.HEAD)
        return last

    def average(self, round: Round, replies: list[Message]) -> ArrayRecord:
        """Keep the head of the last client."""
        return replies[0].content.array_records[messages.WEIGHTS]
