"""Centralised training, the upper bound: on the samples of all clients together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from fl_split.codecs import Identity
from fl_split.exchange.link import Link
from fl_split.flat import Flat
from fl_split.models.cut import Head, Tail
from fl_split.recipe.descent import Descent, descend, finish
from fl_split.recipe.schedules import Moment
from fl_split.seeds import StepId
from simulations.clients.epochs import Epochs
from simulations.data.images import DataError
from simulations.runs.setup import Setup
from strategies.server.training import PooledWork, TrainingFailed


class CentralisedTrainer:
    """Centralised training on the samples of all clients together."""

    def __init__(self, head: Flat[Head], tail: Flat[Tail], setup: Setup) -> None:
        self.head, self.tail, self.setup = head, tail, setup
        parts = setup.experiment.parts
        recipe = setup.recipe()
        self.descents = {
            "pooled-head": Descent(head, parts.head_optimizer, recipe),
            "pooled-tail": Descent(tail, parts.tail_optimizer, recipe),
        }

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """State of both optimisers, by name."""
        return {name: descent.state() for name, descent in self.descents.items()}

    def set_moments(self, found: Mapping[str, dict[str, Tensor]]) -> None:
        """Restore the state that :meth:`moments` returned."""
        for name, descent in self.descents.items():
            descent.restore(found.get(name, {}))

    def __call__(self, server_round: int, clients: Sequence[int]) -> PooledWork:
        """Train for as many samples as `clients` would in a round.

        Raises
        ------
        TrainingFailed
            A step led to numbers that are not finite.
        """
        epochs, train = self.setup.epochs(), self.setup.train
        augment = self.setup.parts.augment
        head, tail = self.head, self.tail
        rows = np.concatenate(train.partitions)
        budget = sum(epochs.num_samples(len(train.partitions[c])) for c in clients)
        at = StepId(epochs.seed, server_round, 0, 0)
        step, link = self.setup.exchange.step, Link(Identity(), Identity())
        losses: list[float] = []
        seen, steps, flops = 0, _num_steps(epochs, len(rows), budget), 0
        each = self.setup.exchange.flops_of_round(server_round, head.module, tail.module)
        while seen < budget:
            chosen = rows[epochs.batch(at, len(rows))]
            batch = train.train_batch(chosen, augment, at, self.setup.device)
            with _told(at):
                found = step(head, tail, link, batch, at)
                if not math.isfinite(found.loss):
                    raise ValueError("a loss that is not finite")
            moment = Moment(server_round, at.step, 1, steps)
            descend([*self.descents.values()], [found.of_head, found.of_tail], moment)
            losses.append(found.loss)
            seen += len(chosen)
            flops += found.work or each.total * len(chosen)
            at = at.next()
        finish([*self.descents.values()], Moment(server_round, steps - 1, 1, steps))
        return PooledWork(sum(losses) / len(losses), seen, len(losses), flops)


def _num_steps(epochs: Epochs, rows: int, budget: int) -> int:
    """Return how many batches of `rows` samples it takes to see `budget` of them."""
    seen = steps = 0
    while seen < budget:
        seen += epochs.batch_samples(steps, rows)
        steps += 1
    return steps


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
