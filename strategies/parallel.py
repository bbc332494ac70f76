"""Parallel split learning: PSL and SFL as in the SGLR paper (Pal et al., arXiv 2112.01299)."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Array, Message
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from strategies.server import messages
from strategies.server.round import Mix, Round
from strategies.server.strategy import SplitStrategy


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

    @property
    def keeps_models(self) -> bool:
        """Whether heads are private."""
        return not self.average_heads

    def train_round(self, round: Round) -> list[Message]:
        """Exchange in lockstep until the last client has run out of batches."""
        round.returned = [messages.HEAD] if self.average_heads else []
        return lockstep(round, round.head if self.average_heads else None)


def lockstep(
    round: Round, head: Array | None, mix_of: Callable[[int], Mix | None] = lambda step: None
) -> list[Message]:
    """Let all clients, with `head` or their own, step together until none has a batch left.

    `mix_of` tells, by step, what becomes of the cut gradients before they are sent.
    """
    active, step = round.clients, 0
    round.begin(active, head)
    while active:
        active = round.serve_together(active, step, mix_of(step))
        step += 1
    return round.replies()
