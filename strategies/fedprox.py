"""FedProx (Li et al., MLSys 2020, arXiv 1812.06127): FedAvg, held near the global model."""

from __future__ import annotations

from typing import Annotated

from flwr.app import Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from strategies.fedavg import train_whole
from strategies.server import messages
from strategies.server.round import Round
from strategies.server.strategy import SplitStrategy


@dataclass(frozen=True, config=STRICT)
class FedProx(SplitStrategy):
    """FedAvg whose clients add mu / 2 ||w - w_t||^2 to their loss, w_t the round's global model.

    Parameters
    ----------
    mu : float
        0 is FedAvg.
    """

    mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01

    trains = "whole"

    def train_round(self, round: Round) -> list[Message]:
        """Send the model and mu, collect the trained models."""
        round.returned = [messages.HEAD, messages.TAIL]
        return train_whole(round, RecordDict({messages.WEIGHTS: round.arrays}), self.mu)
