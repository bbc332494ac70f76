"""The contract of a strategy: who trains when, and what is averaged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from fl_split.codecs import Codec
from fl_split.exchange.protocol import Exchange
from fl_split.exchange.records import Weights
from fl_split.exchange.ushape import crossing
from fl_split.models.cut import Head
from fl_split.optimizers import Optimizer
from strategies.server.aggregation import Update
from strategies.server.assignment import USUAL, Assignment
from strategies.server.participants import Population
from strategies.server.round import Round


class Strategy(ABC):
    """Base of all strategies; what a subclass is, it says by its tags.

    Attributes
    ----------
    sends_smashed_data : bool
        Whether smashed data cross a cut, so that codec and downlink matter.
    trains_on_server : bool
        Whether the server trains on the pooled data and clients do nothing.
    keeps_models : bool
        Whether clients keep heads of their own, or whole models, that nobody averages.
        Accuracy is then the mean over all clients, and the saved model the average.
    averages : bool
        Whether the experiment's `aggregation` has anything to do.
    needs_mean : bool
        Whether the server goes by means with weights n_k / n, so that no other `aggregation` fits.
    needs_labels : bool
        Whether clients tell how many samples of each class they hold.
    works_in_u_shape : bool
        Whether clients may have the loss, so that their labels stay with them.
    mixes_cuts : bool
        Whether clients may be cut at several places: a head that travels then ends at the deepest
        of them, and the server trains what a client does not. Strategies without a cut ignore it.
    serves_in_turn : bool
        Whether clients are served one after the other, so that none can be passed over for
        another one that is faster.
    follows_speeds : bool
        Whether batches follow the speeds of a `system`, where there is one.
    needs_clock : bool
        Whether results depend on virtual time, so that a `system` must be given.
    trains_end_to_end : bool
        Whether heads follow the loss at the end of the tail, so that one client alone is
        trained as the whole model would be.
    least_rounds : int
        Rounds until every part learns. If it is not the first one, a run has parts of its own, and
        `phases` have no place beside them.
    """

    sends_smashed_data: ClassVar[bool] = True
    trains_on_server: ClassVar[bool] = False
    keeps_models: bool = False
    averages: bool = True
    needs_mean: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    works_in_u_shape: ClassVar[bool] = True
    mixes_cuts: bool = False
    serves_in_turn: ClassVar[bool] = False
    follows_speeds: ClassVar[bool] = False
    needs_clock: bool = False
    trains_end_to_end: ClassVar[bool] = True
    least_rounds: int = 1

    @abstractmethod
    def train_round(self, round: Round) -> list[Update]:
        """Serve clients until every one has ended; return what they ended with."""

    def exchange(self, head: Head) -> Exchange:
        """Return what both halves do with one batch, for a model with this head."""
        return crossing(head)

    def bytes_beside(self, head: Head, rounds: Sequence[int]) -> int:
        """Return bytes of weights that a client with this head is sent and does not send back.

        `rounds` are all in which it takes part and in which payloads cross the cut.
        """
        return 0

    def check(self, codec: Codec) -> None:  # noqa: B027  (most work with all)
        """Raise ValueError if this strategy cannot work with `codec`."""

    def tail_optimizer(self, optimizer: Optimizer, clients: int) -> Optimizer:
        """Return the optimiser of the tail: the experiment's, for `clients` per round."""
        return optimizer

    def choose(self, population: Population, server_round: int) -> dict[int, Assignment]:
        """Return the clients of a round, in order, each with what it is asked to do."""
        return dict.fromkeys(population.sample(server_round), USUAL)

    def aggregate(self, round: Round, updates: list[Update]) -> dict[str, Weights]:
        """Average whatever weights the updates carry; without averages, take the only one."""
        if not self.averages:
            return dict(updates[-1].weights)
        return round.average(updates)
