"""FedDyn (Acar et al., ICLR 2021, arXiv 2111.04263): dynamic regularisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.exchange.local_round import LocalRound
from fl_split.exchange.protocol import Exchange
from fl_split.exchange.records import HEAD, TAIL, Number, Weights
from fl_split.exchange.whole import Whole
from fl_split.models.cut import Head
from fl_split.specs import STRICT
from strategies.fedavg import FedAvg
from strategies.server.aggregation import Update
from strategies.server.round import Round

STATES = {HEAD: "head-dynamics", TAIL: "tail-dynamics"}
"""Names of the state h: of the server's among global weights, of a client's in its memory."""


class DynamicRound(LocalRound):
    """Local training on L_k(w) - <h_k, w> + alpha / 2 ||w - w_t||^2."""

    exchange: Dynamic

    def corrected(self, name: str, gradient: Tensor) -> Tensor:
        """Add the gradient of both terms, (P,)."""
        weights, own = self.halves[name].vector.detach(), self.kept(STATES[name], name)
        return gradient + (self.exchange.alpha * (weights - self.starts[name]) - own)

    def end(self, steps: int) -> tuple[Mapping[str, Weights], Mapping[str, Number]]:
        """Keep h_k <- h_k - alpha (w_k - w_t)."""
        del steps
        for name, key in STATES.items():
            change = self.exchange.alpha * self.moved(name)
            self.keep(key, self.kept(key, name) + change)
        return {}, {}


@plain(frozen=True)
class Dynamic(Whole):
    """Training of whole models with a regulariser that follows the client."""

    alpha: float = 0.0
    local = DynamicRound
    copies_kept = 2  # the weights that came, and the client's state


@dataclass(frozen=True, config=STRICT)
class FedDyn(FedAvg):
    """FedAvg whose clients add -<h_k, w> + alpha / 2 ||w - w_t||^2 to their loss.

    h_k <- h_k - alpha (w_k - w_t) stands for the gradient of client k at its last model; the
    server's h <- h - alpha sum_k (n_k / n) (w_k - w_t) for the mean of all, and the global model
    is the mean of the w_k less h / alpha. h_k and h stay where they are: bytes are those of
    `fedavg`. Means have weights n_k / n, h over all clients of the run; the paper has all
    clients count alike. Any optimiser may do the local training. A client whose end comes too
    late for the server keeps its new h_k all the same.

    A full-model baseline. With a copy of the tail per client (`sflv1`) it would be the same to
    the bit; a shared tail has no minimum per client, which h_k is made of.

    Parameters
    ----------
    alpha : float
        0 is FedAvg, by definition: h / alpha does not vanish when alpha does.
    """

    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01

    needs_mean = True

    def exchange(self, head: Head) -> Exchange:
        """Clients train whole models, regularised."""
        return Dynamic(alpha=self.alpha) if self.alpha else Whole()

    def aggregate(self, round: Round, updates: Sequence[Update]) -> dict[str, Weights]:
        """Average weights, and correct the mean by h / alpha."""
        found = round.average(updates)
        share = sum(update.samples for update in updates) / sum(round.samples.values())
        for name, key in STATES.items() if self.alpha else ():
            start = round.weights[name].numpy().astype(np.float64)
            moved = round.part_of_mean(updates, name) - share * start
            state = -self.alpha * moved
            if key in round.weights:  # not yet in the first round
                state += round.weights[key].numpy()
            if (where := round.statistics[name]) is not None:
                state[where.cpu().numpy()] = 0.0
            found[key] = Weights.of(state.astype(np.float32))
            corrected = found[name].numpy() - state / self.alpha
            found[name] = Weights.of(corrected.astype(np.float32))
        return found
