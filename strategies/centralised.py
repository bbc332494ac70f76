"""Centralised training: all data in one place, the upper line of every comparison."""

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
class Centralised(Strategy):
    """Train on the pooled data on the server; nothing travels, the codec does not apply.

    (A trainable codec is part of the model all the same.)

    A round sees as many samples as the clients sampled for it would have. Both optimisers
    live as long as the run. In the results the server is client -1.
    """

    sends_smashed_data = False
    trains_on_server = True
    averages = False

    def exchange(self, head: Head) -> Exchange:
        """Nothing crosses; what one step is, a whole model says."""
        return Whole()

    def train_round(self, round: Round) -> list[Update]:
        """Train one round on the server."""
        round.train_pooled()
        return []
