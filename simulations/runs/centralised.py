"""Centralised training, the upper bound: on the samples of all clients together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from fl_split.codecs import Identity
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch
from fl_split.flat import Flat, descend
from fl_split.models.cut import Head, Tail, whole_flops
from fl_split.optimizers import moments, set_moments
from fl_split.seeds import StepId
from simulations.data.images import DataError
from simulations.runs.setup import Setup
from strategies.server.training import PooledWork, TrainingFailed


class CentralisedTrainer:
    """Centralised training on the samples of all clients together."""

    def __init__(self, head: Flat[Head], tail: Flat[Tail], setup: Setup) -> None:
        self.head, self.tail, self.setup = head, tail, setup
        parts = setup.experiment.parts
        self.optimizers = [
            parts.head_optimizer.build(head.vector),
            parts.tail_optimizer.build(tail.vector),
        ]
        self._named = {
            "pooled-head": (self.optimizers[0], head.vector),
            "pooled-tail": (self.optimizers[1], tail.vector),
        }

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """State of both optimisers, by name."""
        return {name: moments(*pair) for name, pair in self._named.items()}

    def set_moments(self, found: Mapping[str, dict[str, Tensor]]) -> None:
        """Restore the state that :meth:`moments` returned."""
        for name, pair in self._named.items():
            set_moments(*pair, found.get(name, {}))

    def __call__(self, server_round: int, clients: Sequence[int]) -> PooledWork:
        """Train for as many samples as `clients` would in a round.

        Raises
        ------
        TrainingFailed
            A step led to numbers that are not finite.
        """
        schedule, train = self.setup.schedule(), self.setup.train
        head, tail = self.head, self.tail
        rows = np.concatenate(train.partitions)
        budget = sum(schedule.num_samples(len(train.partitions[c])) for c in clients)
        at = StepId(schedule.seed, server_round, 0, 0)
        step, link = self.setup.exchange.step, Link(Identity(), Identity())
        losses: list[float] = []
        seen = 0
        while seen < budget:
            chosen = rows[schedule.batch(at, len(rows))]
            pixels, labels = train.batch(chosen)
            batch = Batch(pixels, labels, train.num_classes)
            with _told(at):
                found = step(head, tail, link, batch, at)
                if not math.isfinite(found.loss):
                    raise ValueError("a loss that is not finite")
            descend(self.optimizers[0], head, found.of_head)
            descend(self.optimizers[1], tail, found.of_tail)
            losses.append(found.loss)
            seen += len(chosen)
            at = at.next()
        flops = whole_flops(head.module, tail.module, seen)
        return PooledWork(sum(losses) / len(losses), seen, len(losses), flops)


@contextmanager
def _told(at: StepId) -> Iterator[None]:
    """Say in which step training on pooled data failed; elsewhere a client would be dropped."""
    try:
        yield
    except DataError:
        raise  # which says enough
    except ValueError as error:
        raise TrainingFailed(
            f"round {at.round}: step {at.step + 1} on the pooled data gave {error}; a smaller "
            "learning rate may help, results so far are kept"
        ) from None
