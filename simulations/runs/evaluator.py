"""Evaluation: what the joined model, or each of those that clients keep, gets right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fl_split.exchange.records import HEAD, TAIL, Weights
from fl_split.exchange.whole import predict_by_exit
from fl_split.exits import Exits, exits_of
from fl_split.flat import Flat
from fl_split.metrics import by_class
from fl_split.models.cut import Head, Tail
from fl_split.recipe.precision import Precision
from simulations.data.samples import Samples
from simulations.runs import private_exits
from simulations.runs.columns import Metric
from simulations.runs.fairness import Fairness
from simulations.runs.moving_average import MovingAverage
from simulations.runs.observers import Observer
from simulations.runs.setup import Setup
from strategies import RoundResult
from strategies.server.threads import ServerThreads

EVALUATION_ROWS = 128
"""Test images that run through the model at once."""


class Answers(NamedTuple):
    """What one model gets right: accuracy and loss, accuracy by class, by client with a shard.

    `of_exits` is the accuracy of each exit, if every image left there; the mean over clients, if
    each keeps its own.
    """

    accuracy: float
    loss: float
    by_class: NDArray[np.float64]
    by_client: dict[int, float]
    of_exits: list[float]


def exit_metrics(head: Head, tail: Tail) -> list[Metric]:
    """Return the columns for the accuracies of the exits of both halves."""
    names = [name for half in (head, tail) if (exits := exits_of(half)) for name in exits.names]
    return [Metric(f"accuracy_{name}", f"accuracy of {name}", "share") for name in names]


class Evaluator(Observer):
    """What the joined model gets right, uncompressed: in the test split, in held-out shards.

    Of models that clients keep it is the mean over clients, each on the whole test split and on
    its own shard. Of private exits it is the mean over all clients that showed theirs, each on
    the whole test split; the images run through the trunk once.
    """

    def __init__(
        self,
        head: Flat[Head],
        tail: Flat[Tail],
        setup: Setup,
        threads: ServerThreads,
        fairness: Fairness,
        average: MovingAverage,
    ) -> None:
        self.head, self.tail, self.setup, self.threads = head, tail, setup, threads
        self.fairness, self.average = fairness, average
        self._exit_columns = [metric.name for metric in exit_metrics(head.module, tail.module)]

    def measure(self, result: RoundResult) -> dict[str, float | None]:
        """Evaluate the global model, or all that clients keep."""
        if result.own:
            found = [self._of({**result.weights, **own}, k) for k, own in result.own.items()]
        else:
            mine = exits_of(self.head.module)
            exits_of_clients = [*private_exits.each(mine, result.exits).values()] if mine else []
            found = [self._of(self.average.add(result.weights), private=exits_of_clients)]
        classes = np.mean([one.by_class for one in found], axis=0)
        clients = {k: value for one in found for k, value in one.by_client.items()}
        exits = np.mean([one.of_exits for one in found], axis=0)
        return {
            "accuracy": float(np.mean([one.accuracy for one in found])),
            "loss": float(np.mean([one.loss for one in found])),
            **self.fairness.add(result.round, classes, clients),
            **dict(zip(self._exit_columns, map(float, exits), strict=True)),
        }

    def load(self, weights: Mapping[str, Weights]) -> None:
        """Put weights into the model."""
        self.head.load(weights[HEAD].numpy())
        self.tail.load(weights[TAIL].numpy())

    def _of(
        self,
        weights: Mapping[str, Weights],
        client: int | None = None,
        private: Sequence[Exits] = (),
    ) -> Answers:
        """Load the weights and measure; `client` owns them, None if all clients share them.

        `private` are the exits of each client that keeps its own.
        """
        self.load(weights)
        self.head.module.eval()
        self.tail.module.eval()
        test, shards = self.setup.test, self.setup.shards
        (right, *exits), loss = self._answers(test, np.arange(len(test.labels)), private)
        by_client: dict[int, float] = {}
        owners = [k for k in ([client] if client is not None else shards) if k in shards]
        if owners:
            rows = np.concatenate([shards[k] for k in owners])
            (own, *_), _ = self._answers(self.setup.train, rows)
            ends = np.cumsum([len(shards[k]) for k in owners])[:-1]
            parts = np.split(own, ends)
            by_client = {k: float(part.mean()) for k, part in zip(owners, parts, strict=True)}
        self.head.module.train()
        self.tail.module.train()
        classes = by_class(right, test.labels, test.num_classes)
        by_exit = np.reshape([one.mean() for one in exits], (len(private) or 1, -1))
        of_exits = by_exit.mean(axis=0).tolist()
        return Answers(float(right.mean()), loss / len(right), classes, by_client, of_exits)

    def _answers(
        self, samples: Samples, rows: NDArray[np.int64], private: Sequence[Exits] = ()
    ) -> tuple[NDArray[np.bool_], float]:
        """Which rows are right (1 + exits, rows), and the summed loss of the server's answers.

        Of `private` exits there are those of all clients, one client after the other.
        """
        starts = range(0, len(rows), EVALUATION_ROWS)
        batches = [rows[start : start + EVALUATION_ROWS] for start in starts]
        part = partial(self._part, samples, private)
        right, losses = zip(*self.threads.map(part, batches), strict=True)
        return np.concatenate(right, axis=1), sum(losses)

    def _part(
        self, samples: Samples, private: Sequence[Exits], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], float]:
        pixels, labels = samples.batch(rows, self.setup.device)
        precision = Precision(self.setup.experiment.precision)
        found = predict_by_exit(self.head.module, self.tail.module, pixels, precision, private)
        loss = functional.cross_entropy(found[0], labels, reduction="sum")
        right = torch.stack([logits.argmax(dim=1) == labels for logits in found])
        return right.cpu().numpy(), float(loss)
