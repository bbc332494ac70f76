"""What all strategies share: a Flower Strategy whose rounds may take many exchanges.

A round of a client with samples: the server starts it (with a head, unless heads are
private); the client answers with a payload; each cut gradient is answered with the next
payload; after its last step the client answers with its weights. A client without samples
takes part in no round. A client with fewer batches than others leaves the round earlier.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from fl_split.optimizers import set_moments
from strategies import messages
from strategies.mailbox import Mailbox
from strategies.participants import NoClientsLeft, roll_call, sample
from strategies.round import Round, Training
from strategies.tail import TrainedTail


class SplitStrategy(Strategy):
    """Base of all strategies: Flower's interface, with :meth:`train_round` left to say."""

    aggregator: ClassVar[Strategy] = FedAvg(weighted_by_key=messages.NUM_EXAMPLES)

    @abstractmethod
    def train_round(self, round: Round) -> list[Message]:
        """Exchange messages until every client of `round` has ended; return final replies."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average whatever weights the replies carry, by Flower's own FedAvg, with n_k / n."""
        return self.aggregator.aggregate_train(server_round, replies)

    def evaluate(
        self,
        round: Round,
        arrays: ArrayRecord,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None],
    ) -> MetricRecord:
        """Evaluate the global model."""
        return evaluate_fn(round.number, arrays) or MetricRecord()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
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
        tail = TrainedTail(training.tail, training.tail_optimizer, training.codec, training.seed)
        tail.flat.load(messages.numbers(arrays[messages.TAIL]))
        training.crew.on_done = getattr(grid, "wake", training.crew.on_done)
        nodes, samples = roll_call(grid, training.clients, timeout, training.crew)
        set_moments(tail.optimizer, tail.flat.vector, training.progress.moments)
        for number in range(training.progress.rounds + 1, num_rounds + 1):
            mailbox = Mailbox(grid, nodes, str(number), timeout, training.crew)
            clients = sample(samples, training.fraction, training.seed, number)
            round = Round(number, clients, samples, mailbox, training, tail, arrays)
            arrays = self.aggregate_round(round, self.train_round(round))
            tail.flat.load(messages.numbers(arrays[messages.TAIL]))
            metrics = self.evaluate(round, arrays, evaluate_fn)
            result.arrays, result.evaluate_metrics_serverapp[number] = arrays, metrics
            if training.on_round(round.report(arrays, metrics)):
                break
        return result

    def aggregate_round(self, round: Round, replies: list[Message]) -> ArrayRecord:
        """Return the global weights after the round.

        What the replies do not carry is as the server has it: its own tail, and the head
        of the round's start.
        """
        if not replies:
            reasons = sorted({t.dropped for t in round.mailbox.traffic.values()})
            raise NoClientsLeft(
                f"round {round.number}: all {len(round.clients)} clients were dropped "
                f"({'; '.join(reasons)}); nothing to aggregate, results so far are kept"
            )
        arrays = messages.weights(head=round.head, tail=round.tail.flat.numpy())
        arrays.update(self.aggregate_train(round.number, replies)[0] or {})
        return arrays

    # Flower's phases; everything happens in `start`, so there is nothing to configure apart.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return nothing: a round of split learning is more than one phase."""
        return []

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
