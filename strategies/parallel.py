"""Parallel split learning: PSL and SFL as in the SGLR paper (Pal et al., arXiv 2112.01299)."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from strategies.server.aggregation import Update
from strategies.server.round import Round
from strategies.server.strategy import Strategy


@dataclass(frozen=True, config=STRICT)
class Parallel(Strategy):
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
    def keeps_models(self) -> bool:  # type: ignore[override]
        """Whether heads are private."""
        return not self.average_heads

    @property
    def averages(self) -> bool:  # type: ignore[override]
        """Whether heads are averaged."""
        return self.average_heads

    @property
    def mixes_cuts(self) -> bool:  # type: ignore[override]
        """Whether clients may be cut at several places: not with heads of their own."""
        return self.average_heads

    def train_round(self, round: Round) -> list[Update]:
        """Serve all clients together until the last one has run out of batches."""
        active = round.begin(round.clients, **({"head": round.head} if self.average_heads else {}))
        while active:
            active = round.serve_together(active)
        return round.updates()
