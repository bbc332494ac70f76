"""FedProx (Li et al., MLSys 2020, arXiv 1812.06127): FedAvg, held near the global model."""

from __future__ import annotations

from dataclasses import dataclass as plain
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.exchange.local_round import LocalRound
from fl_split.exchange.protocol import Exchange
from fl_split.exchange.whole import Whole
from fl_split.models.cut import Head
from fl_split.specs import STRICT
from strategies.fedavg import FedAvg


class ProximalRound(LocalRound):
    """Local training that is pulled towards the weights that came."""

    exchange: Proximal

    def corrected(self, name: str, gradient: Tensor) -> Tensor:
        """Add the gradient of mu / 2 ||w - w_t||^2, (P,)."""
        weights = self.halves[name].vector.detach()
        return gradient + self.exchange.mu * (weights - self.starts[name])


@plain(frozen=True)
class Proximal(Whole):
    """Training of whole models with a proximal term."""

    mu: float = 0.0
    local = ProximalRound
    copies_kept = 1  # the weights that came


@dataclass(frozen=True, config=STRICT)
class FedProx(FedAvg):
    """FedAvg whose clients add mu / 2 ||w - w_t||^2 to their loss, w_t the round's global model.

    Parameters
    ----------
    mu : float
        0 is FedAvg.
    """

    mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01

    def exchange(self, head: Head) -> Exchange:
        """Clients train whole models, pulled towards those that came."""
        return Proximal(mu=self.mu) if self.mu else Whole()
