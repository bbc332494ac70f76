"""SplitFed V1 (Thapa et al., AAAI 2022): one tail per client, heads and tails averaged."""

from __future__ import annotations

from flwr.app import Array, Message
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from strategies.server import messages
from strategies.server.round import Round
from strategies.server.strategy import SplitStrategy
from strategies.server.tail import TrainedTail


@dataclass(frozen=True, config=STRICT)
class SFLV1(SplitStrategy):
    """Every client trains against its own copy of the tail; both are averaged, weights n_k/n.

    Copies start each round from the global tail with a fresh optimiser. Equals FedAvg
    exactly: same batches, same two optimisers, another place for the arithmetic.

    Parameters
    ----------
    compat : bool
        As the official scripts, which do not follow the paper: the tail's optimiser starts
        afresh with every batch, and clients count equally whatever they hold.
    """

    compat: bool = False

    def train_round(self, round: Round) -> list[Message]:
        """Serve payloads as they come: no client's tail depends on another's."""
        round.tail.restarts = self.compat
        tails = train_apart(round, round.head)
        for client, reply in round.finals.items():
            weights = reply.content.array_records[messages.WEIGHTS]
            weights.update(messages.weights(tail=tails[client].flat.numpy()))
        return round.weighted(lambda client: 1) if self.compat else round.replies()


def train_apart(round: Round, head: Array | None) -> dict[int, TrainedTail]:
    """Train every client, with `head` or its own, against a tail of its own; return the tails."""
    tails = dict(zip(round.clients, round.tail.forks(len(round.clients)), strict=True))
    steps = dict.fromkeys(round.clients, 0)
    round.begin(round.clients, head)
    for payloads in round.arrivals():
        round.serve_apart(tails, payloads, steps)
        for client in payloads:
            steps[client] += 1
    return tails
