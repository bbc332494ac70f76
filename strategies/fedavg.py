"""Federated averaging (McMahan et al., AISTATS 2017): no cut, the whole model travels."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from fl_split.exchange.protocol import Exchange
from fl_split.exchange.whole import Whole
from fl_split.models.cut import Head
from fl_split.specs import STRICT
from strategies.server.aggregation import Update
from strategies.server.round import Round
from strategies.server.strategy import Strategy


@dataclass(frozen=True, config=STRICT)
class FedAvg(Strategy):
    """Clients train head and tail locally, with the same two optimisers as split learning.

    Averaging is Flower's own FedAvg; sampling and order go by partition id. The codec does
    not apply: no smashed data travel. (A trainable codec is part of the model all the same.)
    """

    sends_smashed_data = False

    def exchange(self, head: Head) -> Exchange:
        """Clients train whole models."""
        return Whole()

    def train_round(self, round: Round) -> list[Update]:
        """Send the model, collect the trained ones."""
        round.begin(round.clients, **round.exchange.travelling(round.weights))
        round.finish()
        return round.updates()
