"""SplitFed V2 (Thapa et al., AAAI 2022): one tail, served client by client; heads averaged."""

from __future__ import annotations

from itertools import count
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.optimizers import Optimizer, Restarting
from fl_split.specs import STRICT
from strategies.server.aggregation import Update
from strategies.server.round import Round
from strategies.server.strategy import Strategy

Order = Literal["random", "cyclic", "reverse"]


@dataclass(frozen=True, config=STRICT)
class SFLV2(Strategy):
    """The shared tail steps after every batch, clients in some order; heads are averaged.

    The result depends on the order, so it is part of the name.

    Parameters
    ----------
    order : "random", "cyclic", "reverse" or "arrival"
        Anew each round, by partition id, by falling partition id, or as payloads arrive in
        virtual time, which needs a `system`.
    phi : int
        Consecutive batches of a client served per turn; 0 serves all of them (the official
        code), 1 is round-robin.
    official_scripts : bool
        As the official scripts, which do not follow the paper: the tail's optimiser starts
        afresh with every batch, and clients count equally whatever they hold.
    """

    order: Literal["random", "cyclic", "reverse", "arrival"] = "random"
    phi: Annotated[int, Field(ge=0)] = 0
    official_scripts: bool = False

    mixes_cuts = True
    serves_in_turn = True

    @property
    def needs_clock(self) -> bool:  # type: ignore[override]
        """Whether the order is that of virtual time."""
        return self.order == "arrival"

    def tail_optimizer(self, optimizer: Optimizer, clients: int) -> Optimizer:
        """Return the experiment's, or one that starts afresh with every batch."""
        return Restarting(optimizer) if self.official_scripts else optimizer

    def train_round(self, round: Round) -> list[Update]:
        """Serve turns of `phi` batches until nobody has a batch left."""
        round.begin(round.clients, head=round.head)
        if self.order == "arrival":
            while (client := round.earliest(round.clients)) is not None:
                self._turn(round, client)
        else:
            queue = round.order(self.order)
            while queue:
                queue = [client for client in queue if self._turn(round, client)]
        return round.updates((lambda client: 1) if self.official_scripts else None)

    def _turn(self, round: Round, client: int) -> bool:
        """Serve one turn of `client`; tell whether it may have more batches."""
        for _ in range(self.phi) if self.phi else count():
            arrival = round.payload(client)
            if arrival is None:
                return False
            round.serve(client, arrival)
        return True
