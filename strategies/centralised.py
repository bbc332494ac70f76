"""Centralised training: all data in one place, the upper line of every comparison."""

from __future__ import annotations

from flwr.app import ArrayRecord, Message
from pydantic.dataclasses import dataclass

from fl_split.models.flops import whole_step
from fl_split.specs import STRICT
from strategies.server import messages
from strategies.server.mailbox import Traffic
from strategies.server.round import Round
from strategies.server.strategy import SplitStrategy


@dataclass(frozen=True, config=STRICT)
class Centralised(SplitStrategy):
    """Train on the pooled data on the server; nothing travels, the codec does not apply.

    (A trainable codec is part of the model all the same.)

    A round sees as many samples as the clients sampled for it would have. Both optimisers
    live as long as the run. In the results the server is client -1.
    """

    trains = "pooled"

    @property
    def averages(self) -> bool:
        """Nothing is averaged."""
        return False

    def train_round(self, round: Round) -> list[Message]:
        """Train one round on the server."""
        loss, samples, steps = round.training.pooled_round(round.number, round.clients)
        round.losses[-1, 0] = loss
        head, tail = round.training.head.module, round.training.tail.module
        round.server_flops = whole_step(head, tail, samples)
        round.mailbox.traffic[-1] = Traffic(samples=samples, steps=steps)
        return []

    def aggregate_round(self, round: Round, replies: list[Message]) -> ArrayRecord:
        """Take the weights as training left them."""
        training = round.training
        return messages.weights(head=training.head.numpy(), tail=training.tail.numpy())
