"""Local training: every client for itself, the lower line of every comparison."""

from __future__ import annotations

from flwr.app import Message, RecordDict
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from strategies.fedavg import train_whole
from strategies.server.round import Round
from strategies.server.strategy import SplitStrategy


@dataclass(frozen=True, config=STRICT)
class Local(SplitStrategy):
    """Every client trains a whole model of its own; nothing travels, nothing is averaged.

    Models and optimisers live as long as the run. Accuracy is the mean over all clients,
    each with its own model; the saved model is their average.
    """

    @property
    def keeps_models(self) -> bool:
        """Whole ones."""
        return True

    trains = "whole"

    def train_round(self, round: Round) -> list[Message]:
        """Ask clients to go on with what they have."""
        round.returned = []
        return train_whole(round, RecordDict())
