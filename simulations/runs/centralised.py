"""The upper line: training on the samples of all clients together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from fl_split.codecs import Identity
from fl_split.exchange.split import Place
from fl_split.exchange.whole import train_step
from fl_split.flat import Flat
from fl_split.models.cut import Head, Tail
from fl_split.optimizers import moments, set_moments
from simulations.runs.setup import Setup


class Pool:
    """Centralised training on the samples of all clients together."""

    def __init__(self, head: Flat[Head], tail: Flat[Tail], setup: Setup) -> None:
        self.head, self.tail, self.setup = head, tail, setup
        build = setup.experiment.build
        self.optimizers = [
            build("head_optimizer").build(head.vector),
            build("tail_optimizer").build(tail.vector),
        ]
        self._named = {
            "pooled-head": (self.optimizers[0], head.vector),
            "pooled-tail": (self.optimizers[1], tail.vector),
        }

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """State of both optimisers, by name."""
        return {name: moments(*pair) for name, pair in self._named.items()}

    def set_moments(self, found: Mapping[str, dict[str, Tensor]]) -> None:
        """Put the optimisers back where :meth:`moments` found them."""
        for name, pair in self._named.items():
            set_moments(*pair, found.get(name, {}))

    def __call__(self, server_round: int, clients: Sequence[int]) -> tuple[float, int, int]:
        """Train for as many samples as `clients` would; return mean loss, samples and steps."""
        setup, schedule = self.setup, self.setup.schedule()
        train = setup.train
        rows = np.concatenate(train.partitions)
        budget = sum(schedule.num_samples(len(train.partitions[c])) for c in clients)
        place = Place(schedule.seed, server_round, 0, 0)
        losses: list[float] = []
        seen = 0
        while seen < budget:
            chosen = rows[schedule.batch(place, len(rows))]
            batch = (Identity(), *train.batch(chosen), train.num_classes, place)
            losses.append(train_step(self.head, self.tail, self.optimizers, *batch))
            seen += len(chosen)
            place = place.next()
        return sum(losses) / len(losses), seen, len(losses)
