"""FedProx (Li et al., MLSys 2020, arXiv 1812.06127): FedAvg, held near the global model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.exchange.protocol import Exchange
from fl_split.exchange.whole import Whole
from fl_split.models.cut import Head
from fl_split.specs import STRICT
from strategies.server.aggregation import Update
from strategies.server.round import Round
from strategies.server.strategy import Strategy


@dataclass(frozen=True)
class Proximal:
    """The gradient of mu / 2 ||w - w_t||^2."""

    mu: float

    def __call__(self, weights: Tensor, start: Tensor) -> Tensor:
        """Return mu (w - w_t), (P,)."""
        return self.mu * (weights - start)


@dataclass(frozen=True, config=STRICT)
class FedProx(Strategy):
    """FedAvg whose clients add mu / 2 ||w - w_t||^2 to their loss, w_t the round's global model.

    Parameters
    ----------
    mu : float
        0 is FedAvg.
    """

    mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01

    sends_smashed_data = False

    def exchange(self, head: Head) -> Exchange:
        """Clients train whole models, pulled towards those that came."""
        return Whole(Proximal(self.mu) if self.mu else None)

    def train_round(self, round: Round) -> list[Update]:
        """Send the model, collect the trained models."""
        round.begin(round.clients, **round.weights)
        round.finish()
        return round.updates()
