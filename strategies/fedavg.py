"""Federated averaging (McMahan et al., AISTATS 2017): no cut, the whole model travels."""

from __future__ import annotations

from flwr.app import ConfigRecord, Message, RecordDict
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from strategies.server import messages
from strategies.server.round import Round
from strategies.server.strategy import SplitStrategy


@dataclass(frozen=True, config=STRICT)
class FedAvg(SplitStrategy):
    """Clients train head and tail locally, with the same two optimisers as split learning.

    Averaging is Flower's own FedAvg; sampling and order go by partition id. The codec does
    not apply: no smashed data travel. (A trainable codec is part of the model all the same.)
    """

    trains = "whole"

    def train_round(self, round: Round) -> list[Message]:
        """Send the model, collect the trained ones."""
        round.returned = [messages.HEAD, messages.TAIL]
        return train_whole(round, RecordDict({messages.WEIGHTS: round.arrays}))


def train_whole(round: Round, content: RecordDict, mu: float = 0.0) -> list[Message]:
    """Let all clients train whole models, those in `content` or their own."""
    round.is_local = True
    content[messages.SETTINGS] = ConfigRecord({messages.ROUND: round.number, messages.MU: mu})
    for client in round.clients:
        round.mailbox.send(client, messages.LOCAL, content)
    round.finish()
    for client, reply in sorted(round.finals.items()):
        round.losses[client, 0] = messages.metric(reply, messages.LOSS)
    return round.replies()
