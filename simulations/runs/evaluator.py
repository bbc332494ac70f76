"""The server's measurement: what the joined model gets right."""

from __future__ import annotations

from functools import partial

import numpy as np
from flwr.app import ArrayRecord, MetricRecord
from numpy.typing import NDArray
from torch.nn import functional

from fl_split.exchange.whole import predict
from fl_split.flat import Flat
from fl_split.metrics import by_class
from fl_split.models.cut import Head, Tail
from simulations.data.samples import Table
from simulations.runs.setup import Setup
from strategies.server import messages
from strategies.server.threads import Crew

EVALUATION_ROWS = 128
"""Test images that run through the model at once."""


class Evaluator:
    """What the joined model gets right, uncompressed: in the test split, in held-out shards."""

    def __init__(self, head: Flat[Head], tail: Flat[Tail], setup: Setup, crew: Crew) -> None:
        self.head, self.tail, self.setup, self.crew = head, tail, setup, crew

    def load(self, arrays: ArrayRecord) -> None:
        """Put weights into the model."""
        self.head.load(messages.numbers(arrays[messages.HEAD]))
        self.tail.load(messages.numbers(arrays[messages.TAIL]))

    def __call__(
        self, server_round: int, arrays: ArrayRecord, client: int | None = None
    ) -> MetricRecord:
        """Load the weights and measure; `client` tells whose they are, if not everybody's."""
        self.load(arrays)
        self.head.module.eval()
        self.tail.module.eval()
        test, shards = self.setup.test, self.setup.shards
        right, loss = self._answers(test, np.arange(len(test.labels)))
        found = MetricRecord({"accuracy": float(right.mean()), "loss": loss / len(right)})
        found[messages.CLASSES] = by_class(right, test.labels, test.num_classes).tolist()
        owners = [k for k in ([client] if client is not None else shards) if k in shards]
        if owners:
            rows = np.concatenate([shards[k] for k in owners])
            own, _ = self._answers(self.setup.train, rows)
            ends = np.cumsum([len(shards[k]) for k in owners])[:-1]
            found[messages.SHARDS] = [float(part.mean()) for part in np.split(own, ends)]
            found[messages.SHARD_CLIENTS] = owners
        self.head.module.train()
        self.tail.module.train()
        return found

    def _answers(self, table: Table, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], float]:
        """Which rows are right, and the summed loss."""
        starts = range(0, len(rows), EVALUATION_ROWS)
        batches = [rows[start : start + EVALUATION_ROWS] for start in starts]
        right, losses = zip(*self.crew.map(partial(self._part, table), batches), strict=True)
        return np.concatenate(right), sum(losses)

    def _part(self, table: Table, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], float]:
        pixels, labels = table.batch(rows)
        logits = predict(self.head.module, self.tail.module, pixels)
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        return (logits.argmax(dim=1) == labels).numpy(), float(loss)
