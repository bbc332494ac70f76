"""Parallel split learning: PSL and SFL as in the SGLR paper (Pal et al., arXiv 2112.01299)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from strategies import messages
from strategies.round import Round
from strategies.strategy import SplitStrategy


@dataclass(frozen=True, config=STRICT)
class Parallel(SplitStrategy):
    """All clients step together; the shared tail takes one step per exchange, weights n_k/n.

    In each exchange n sums over the clients that still have a batch, and n_k counts all
    samples of client k. Each client gets the cut gradient of its own loss.

    Parameters
    ----------
    average_heads : bool
        True averages heads at round end, with weights n_k/n. False is PSL proper: heads
        (and their optimisers) stay with the clients and never travel; accuracy is then the
        mean over all clients, each with its own head, and the saved model holds the
        average head.
    """

    average_heads: bool = True

    def train_round(self, round: Round) -> list[Message]:
        """Exchange in lockstep until the last client has run out of batches."""
        active, step = round.clients, 0
        round.returned = [messages.HEAD] if self.average_heads else []
        round.begin(active, round.head if self.average_heads else None)
        while active:
            active = round.serve_together(active, step)
            step += 1
        return round.replies()

    def aggregate_round(self, round: Round, replies: list[Message]) -> ArrayRecord:
        """Average the heads, unless they are private: then only for the saved model."""
        if self.average_heads or not replies:
            return super().aggregate_round(round, replies)
        heads = round.own_heads()
        total = sum(round.samples[client] for client in heads)
        mean = sum(head * (round.samples[client] / total) for client, head in heads.items())
        return messages.weights(head=np.asarray(mean), tail=round.tail.flat.numpy())

    def evaluate(
        self,
        round: Round,
        arrays: ArrayRecord,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None],
    ) -> MetricRecord:
        """Evaluate the global model, or the mean over private heads."""
        if self.average_heads:
            return super().evaluate(round, arrays, evaluate_fn)
        tail = arrays[messages.TAIL]
        rows = [
            evaluate_fn(round.number, messages.weights(head=head, tail=tail)) or MetricRecord()
            for head in round.own_heads().values()
        ]
        return MetricRecord({key: float(np.mean([row[key] for row in rows])) for key in rows[0]})
