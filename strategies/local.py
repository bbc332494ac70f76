"""Local training: every client for itself, the lower line of every comparison."""

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
class Local(Strategy):
    """Every client trains a whole model of its own; nothing travels, nothing is averaged.

    Models and optimisers live as long as the run. Accuracy is the mean over all clients,
    each with its own model; the saved model is their average.
    """

    sends_smashed_data = False
    keeps_models = True
    averages = False

    def exchange(self, head: Head) -> Exchange:
        """Clients train whole models."""
        return Whole()

    def train_round(self, round: Round) -> list[Update]:
        """Ask clients to go on with what they have."""
        round.begin(round.clients)
        round.finish()
        return round.updates()
