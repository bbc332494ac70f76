"""SplitFed V3 (Gawali et al., 2021, arXiv 2012.12591): private heads, tails averaged."""

from __future__ import annotations

from flwr.app import Message
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from strategies.server import messages
from strategies.server.round import Round
from strategies.server.strategy import SplitStrategy
from strategies.sflv1 import train_apart


@dataclass(frozen=True, config=STRICT)
class SFLV3(SplitStrategy):
    """Every client trains its own head against its own copy of the tail; only tails are averaged.

    Heads and their optimisers stay with the clients and never travel. Copies start each
    round from the global tail with a fresh optimiser and are averaged, weights n_k/n.
    Accuracy is the mean over all clients, each with its own head.
    """

    @property
    def keeps_models(self) -> bool:
        """Heads are private."""
        return True

    @property
    def averages(self) -> bool:
        """Tails are."""
        return True

    def train_round(self, round: Round) -> list[Message]:
        """Serve payloads as they come: no client's tail depends on another's."""
        round.returned = []
        tails = train_apart(round, None)
        for client, reply in round.finals.items():
            reply.content[messages.WEIGHTS] = messages.weights(tail=tails[client].flat.numpy())
        return round.replies()
