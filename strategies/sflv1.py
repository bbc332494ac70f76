"""SplitFed V1 (Thapa et al., AAAI 2022): one tail per client, heads and tails averaged."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from fl_split.optimizers import Optimizer, Restarting
from fl_split.specs import STRICT
from strategies.server.aggregation import Update
from strategies.server.round import Round
from strategies.server.strategy import Strategy


@dataclass(frozen=True, config=STRICT)
class SFLV1(Strategy):
    """Every client trains against its own copy of the tail; both are averaged, weights n_k/n.

    Copies start each round from the global tail with a fresh optimiser. Equals FedAvg
    exactly: same batches, same two optimisers, another place for the arithmetic.

    Parameters
    ----------
    official_scripts : bool
        As the official scripts, which do not follow the paper: the tail's optimiser starts
        afresh with every batch, and clients count equally whatever they hold.
    """

    official_scripts: bool = False

    mixes_cuts = True

    def tail_optimizer(self, optimizer: Optimizer, clients: int) -> Optimizer:
        """Return the experiment's, or one that starts afresh with every batch."""
        return Restarting(optimizer) if self.official_scripts else optimizer

    def train_round(self, round: Round) -> list[Update]:
        """Serve payloads as they come: no client's tail depends on another's."""
        tails = dict(zip(round.clients, round.tail.forks(len(round.clients)), strict=True))
        round.begin(round.clients, head=round.head)
        for arrivals in round.arrivals():
            round.serve_apart(tails, arrivals)
        updates = round.updates((lambda client: 1) if self.official_scripts else None)
        return [
            update.including(tail=tails[update.client].finish().weights()) for update in updates
        ]
