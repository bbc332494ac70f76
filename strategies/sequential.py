"""Vanilla split learning (Gupta and Raskar, 2018): one head handed from client to client."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, MetricRecord
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from strategies import messages
from strategies.round import Round
from strategies.sflv2 import Order
from strategies.strategy import SplitStrategy


@dataclass(frozen=True, config=STRICT)
class Sequential(SplitStrategy):
    """Clients train one after another; each starts from the head its predecessor left.

    The head travels through the server, so a hand-over costs one head up and one down.
    The tail steps after every batch; nothing is averaged.

    Parameters
    ----------
    order : "random", "cyclic" or "reverse"
        Anew each round, by partition id, or by falling partition id.
    """

    order: Order = "random"

    def train_round(self, round: Round) -> list[Message]:
        """Visit one client after the other; a dropped client hands nothing over."""
        head, last = round.head, []
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

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Keep the head of the last client."""
        return next(iter(replies)).content.array_records[messages.WEIGHTS], None
