"""SplitFed V2 (Thapa et al., AAAI 2022): one tail, served client by client; heads averaged."""

from __future__ import annotations

from typing import Annotated, Literal

from flwr.app import Message
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from strategies.server.round import Round
from strategies.server.strategy import SplitStrategy

Order = Literal["random", "cyclic", "reverse"]


@dataclass(frozen=True, config=STRICT)
class SFLV2(SplitStrategy):
    """The shared tail steps after every batch, clients in some order; heads are averaged.

    The result depends on the order, so it is part of the name.

    Parameters
    ----------
    order : "random", "cyclic" or "reverse"
        Anew each round, by partition id, or by falling partition id.
    phi : int
        Consecutive batches of a client served per turn; 0 serves all of them (the official
        code), 1 is round-robin.
    compat : bool
        As the official scripts, which do not follow the paper: the tail's optimiser starts
        afresh with every batch, and clients count equally whatever they hold.
    """

    order: Order = "random"
    phi: Annotated[int, Field(ge=0)] = 0
    compat: bool = False

    def train_round(self, round: Round) -> list[Message]:
        """Serve turns of `phi` batches until nobody has a batch left."""
        round.tail.restarts = self.compat
        round.begin(round.clients, round.head)
        queue, steps = round.order(self.order), dict.fromkeys(round.clients, 0)
        while queue:
            queue = [client for client in queue if self._turn(round, client, steps)]
        return round.weighted(lambda client: 1) if self.compat else round.replies()

    def _turn(self, round: Round, client: int, steps: dict[int, int]) -> bool:
        """Serve one turn of `client`; tell whether it may have more batches."""
        served = 0
        while not self.phi or served < self.phi:
            payload = round.payload(client)
            if payload is None:
                return False
            round.serve(client, payload, steps[client])
            steps[client] += 1
            served += 1
        return True
