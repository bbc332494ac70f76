"""What all strategies share: a Flower Strategy whose rounds may take many exchanges.

A round of a client with samples: the server starts it (with a head, unless heads are
private); the client answers with a payload; each cut gradient is answered with the next
payload; after its last step the client answers with its weights. A client without samples
takes part in no round. A client with fewer batches than others leaves the round earlier.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fl_split.codecs import Codec
from fl_split.optimizers import Optimizer, set_moments
from strategies.server import messages
from strategies.server.mailbox import Mailbox
from strategies.server.participants import NoClientsLeft, Population, roll_call
from strategies.server.round import Round
from strategies.server.tail import TrainedTail
from strategies.server.training import Training
from strategies.server.ushape import UShapedRound


class SplitStrategy(Strategy):
    """Base of all strategies: Flower's interface, with :meth:`train_round` left to say."""

    trains: ClassVar[Literal["split", "whole", "pooled"]] = "split"
    """Heads on clients and tails on the server, whole models on clients, or all on the server."""

    needs_labels: ClassVar[bool] = False
    """Whether clients tell how many samples of each class they hold."""

    @property
    def keeps_models(self) -> bool:
        """Whether clients keep heads of their own, or whole models, that nobody averages."""
        return False

    @abstractmethod
    def train_round(self, round: Round) -> list[Message]:
        """Exchange messages until every client of `round` has ended; return final replies."""

    @property
    def averages(self) -> bool:
        """Whether the experiment's `aggregation` has anything to do."""
        return not self.keeps_models

    def check(self, codec: Codec) -> None:
        """Raise ValueError if this strategy cannot work with `codec`."""

    def tail_optimizer(self, training: Training, clients: int) -> Optimizer:
        """Return the optimiser of the server's tail, `clients` per round: the experiment's."""
        return training.tail_optimizer

    def choose(self, population: Population, server_round: int) -> dict[int, float]:
        """Return the clients of a round, in order, each with its share of the batch size."""
        return dict.fromkeys(population.sample(server_round), 1.0)

    def average(self, round: Round, replies: list[Message]) -> ArrayRecord:
        """Average whatever weights the replies carry, by one of Flower's strategies."""
        training = round.training
        statistics = {
            messages.HEAD: training.head.statistics,
            messages.TAIL: training.tail.statistics,
        }
        return training.aggregator(round.number, replies, round.arrays, training.seed, statistics)

    def evaluate(
        self,
        round: Round,
        arrays: ArrayRecord,
        evaluate_fn: Callable[..., MetricRecord | None],
    ) -> MetricRecord:
        """Evaluate the global model, or the mean over the clients' own.

        Metrics that are lists hold a number per class, or (messages.SHARDS) per client.
        """
        if not self.keeps_models:
            return evaluate_fn(round.number, arrays) or MetricRecord()
        rows = [
            evaluate_fn(round.number, messages.weights(**{**arrays, **own}), client)
            or MetricRecord()
            for client, own in round.own_weights().items()
        ]
        shards = (messages.SHARDS, messages.SHARD_CLIENTS)  # which some clients have not
        found = {key: _joined(row.get(key, []) for row in rows) for key in shards}
        for key in rows[0].keys() - found.keys():
            found[key] = np.mean([row[key] for row in rows], axis=0).tolist()
        return MetricRecord({key: value for key, value in found.items() if value != []})

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[..., MetricRecord | None] | None = None,
        *,
        training: Training | None = None,
    ) -> Result:
        """Run up to `num_rounds` rounds; `timeout` bounds the wait for any one reply.

        Raises
        ------
        NoClientsLeft
            All clients of a round failed.
        """
        assert training is not None, "Training says which tail to train, and on what"
        assert evaluate_fn is not None
        result, arrays = Result(), initial_arrays
        training.crew.on_done = getattr(grid, "wake", training.crew.on_done)
        nodes, samples, labels = roll_call(
            grid, training.clients, timeout, training.crew, self.needs_labels
        )
        sizes = training.fraction, training.batch_size
        population = Population(samples, labels, *sizes, training.seed)
        per_round = len(self.choose(population, 1))
        optimizer = self.tail_optimizer(training, per_round)
        tail = TrainedTail(training.tail, optimizer, training.codec, training.seed)
        tail.flat.load(messages.numbers(arrays[messages.TAIL]))
        kind = UShapedRound if training.head.module.end else Round
        set_moments(tail.optimizer, tail.flat.vector, training.progress.moments)
        training.aggregator.set_state(training.progress.aggregator)
        for number in range(training.progress.rounds + 1, num_rounds + 1):
            mailbox = Mailbox(grid, nodes, str(number), timeout, training.crew)
            shares = self.choose(population, number)
            round = kind(number, shares, samples, mailbox, training, tail, arrays)
            replies = self.train_round(round)
            round.note_drift(replies)  # before aggregation, which may consume them
            arrays = self.aggregate_round(round, replies)
            tail.flat.load(messages.numbers(arrays[messages.TAIL]))
            metrics = self.evaluate(round, arrays, evaluate_fn)
            result.arrays, result.evaluate_metrics_serverapp[number] = arrays, metrics
            if training.on_round(round.report(arrays, metrics)):
                break
        return result

    def aggregate_round(self, round: Round, replies: list[Message]) -> ArrayRecord:
        """Return the global weights after the round.

        What the replies do not carry is as the server has it: its own tail, and the head
        of the round's start. Of models that clients keep it is the mean, to be saved.
        """
        if not replies:
            reasons = sorted({t.dropped for t in round.mailbox.traffic.values()})
            raise NoClientsLeft(
                f"round {round.number}: all {len(round.clients)} clients were dropped "
                f"({'; '.join(reasons)}); nothing to aggregate, results so far are kept"
            )
        arrays = messages.weights(head=round.head, tail=round.tail.flat.numpy())
        if self.keeps_models:
            arrays.update(round.mean_of_own())
        if any(messages.WEIGHTS in reply.content for reply in replies):
            arrays.update(self.average(round, replies))
        return arrays

    # Flower's phases; everything happens in `start`, so there is nothing to configure apart.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return nothing: a round of split learning is more than one phase."""
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return nothing: see :meth:`average`."""
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return nothing: evaluation is the server's."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return nothing: evaluation is the server's."""
        return None

    def summary(self) -> None:
        """Log nothing: the ``repr`` of a strategy says all."""


def _joined(lists: Iterable[Any]) -> list[Any]:
    return [number for numbers in lists for number in numbers]
