"""Descent: how the gradients of one half become steps of its optimiser.

    gradient -> (mean of N) -> (clipped) -> optimiser at the rate of this moment -> weights

Running statistics of batch norms follow their own rule, in every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fl_split.accelerators import CPU
from fl_split.flat import Flat
from fl_split.models.norms import MOMENTUM
from fl_split.optimizers import Optimizer, moments, set_moments
from fl_split.recipe.clipping import Clip, NoClip
from fl_split.recipe.phases import Phases
from fl_split.recipe.schedules import ONLY, Constant, Moment, Schedule

SUM, COUNT = "accumulated", "accumulated-count"
"""What a descent remembers beside the moments of its optimiser."""


@dataclass(frozen=True)
class Recipe:
    """How gradients become steps, the same for head and tail.

    Attributes
    ----------
    schedule : Schedule
        What learning rates are multiplied by.
    rounds : int
        Rounds of the run, as the schedule needs them.
    clip : Clip
        What becomes of gradients before the optimiser gets them.
    phases : Phases
        What is trained in which rounds.
    accumulate : int
        Steps whose gradients are averaged to one step of the optimiser; what is left at the end
        of a round makes one more, see :func:`finish`.
    """

    schedule: Schedule = field(default_factory=Constant)
    rounds: int = 1
    clip: Clip = field(default_factory=NoClip)
    accumulate: int = 1
    phases: Phases = field(default_factory=Phases)


PLAIN = Recipe()
"""One step per gradient, at the optimiser's own rate."""


class Descent:
    """The optimiser of one half, and what it has gathered since its last step."""

    def __init__(self, flat: Flat[Any], optimizer: Optimizer, recipe: Recipe = PLAIN) -> None:
        self.flat, self.spec, self.recipe = flat, optimizer, recipe
        self.optimizer = optimizer.build(flat.vector)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._decay = getattr(optimizer, "decay_of_matrices", 0.0)
        self._sum: Tensor | None = None
        self._count = 0

    def step(self, gradient: Tensor, at: Moment = ONLY) -> None:
        """Take a gradient (P,), and a step of the optimiser if it is time for one."""
        descend([self], [gradient], at)

    def state(self) -> dict[str, Tensor]:
        """All that it remembers, by name."""
        found = moments(self.optimizer, self.flat.vector)
        if self._sum is not None:
            found |= {SUM: self._sum, COUNT: torch.tensor(self._count, device="cpu")}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Remember what :meth:`state` returned; its tensors are copied."""
        device = self.flat.vector.device
        found = {k: v.to(device if v.dim() else CPU, copy=True) for k, v in state.items()}
        self._sum, count = found.pop(SUM, None), found.pop(COUNT, None)
        self._count = 0 if count is None else int(count)
        set_moments(self.optimizer, self.flat.vector, found)

    def _gather(self, gradient: Tensor) -> None:
        """Add a gradient to those since the last step."""
        self._sum = gradient if self._sum is None else self._sum + gradient
        self._count += 1

    def _mean(self) -> Tensor:
        """Return the mean of what was gathered, and begin anew."""
        assert self._sum is not None
        mean = self._sum if self._count == 1 else self._sum / self._count
        self._sum, self._count = None, 0
        return mean

    def _move(self, gradient: Tensor, at: Moment) -> None:
        """Take one step of the optimiser, at the rate of the moment; statistics stay."""
        factor = self.recipe.schedule.factor(at, self.recipe.rounds)
        vector, where = self.flat.vector, self._stays(at)
        kept = None if where is None else vector.detach()[where]
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
            if self._decay:
                share = torch.tensor(1 - group["lr"] * self._decay, device=vector.device)
                vector.detach().mul_(torch.where(self.flat.in_matrices, share, 1.0))
        vector.grad = gradient
        self.optimizer.step()
        vector.grad = None
        if kept is not None:
            vector.detach()[where] = kept

    def _spared(self, at: Moment) -> Tensor | None:
        """Where in the vector a phase moves nothing."""
        return self.recipe.phases.kept(self.flat, at.round)

    def _stays(self, at: Moment) -> Tensor | None:
        """Where in the vector the optimiser moves nothing: statistics, what a phase leaves out."""
        kept, where = self._spared(at), self.flat.statistics
        if kept is None or where is None:
            return where if kept is None else kept
        return kept.index_fill(0, where, True)


def descend(descents: Sequence[Descent], gradients: Sequence[Tensor], at: Moment) -> None:
    """Take a gradient for each of several halves, clipped together if they are to be stepped.

    Running statistics go their gradient times MOMENTUM, whatever rate, moments or decay others
    have.
    """
    for descent, gradient in zip(descents, gradients, strict=True):
        vector, where = descent.flat.vector.detach(), descent.flat.statistics
        if (spared := descent._spared(at)) is not None:  # clipping must not see it either
            gradient = gradient.masked_fill(spared, 0.0)
        if where is not None:
            vector[where] = vector[where] - MOMENTUM * gradient[where]
            gradient = gradient.index_fill(0, where, 0.0)
        descent._gather(gradient)
    if descents[0]._count >= descents[0].recipe.accumulate:
        _step(descents, at)


def finish(descents: Sequence[Descent], at: Moment) -> None:
    """Take a step on the gradients that are left at the end of a round, if there are any."""
    if descents[0]._count:
        _step(descents, at)


def _step(descents: Sequence[Descent], at: Moment) -> None:
    """Step on the means of what was gathered, clipped together."""
    means = [descent._mean() for descent in descents]
    for descent, mean in zip(descents, descents[0].recipe.clip.clipped(means), strict=True):
        descent._move(mean, at)
