"""A tail in training on the server: its weights, its optimiser, and copies of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.link import Arrival
from fl_split.exchange.protocol import Exchange
from fl_split.exchange.records import TAIL, Weights
from fl_split.exchange.served import HalfServed, Served
from fl_split.exchange.split import total
from fl_split.flat import Flat, copy_trained
from fl_split.models.cut import Tail
from fl_split.optimizers import Optimizer
from fl_split.recipe.descent import PLAIN, Descent, Recipe, finish
from fl_split.recipe.schedules import Moment
from fl_split.seeds import StepId


class TrainedTail:
    """A tail and its optimiser, trained by an exchange."""

    def __init__(
        self,
        tail: Flat[Tail],
        optimizer: Optimizer,
        exchange: Exchange,
        recipe: Recipe = PLAIN,
    ) -> None:
        self.flat, self.exchange = tail, exchange
        self._spec = optimizer, exchange, recipe
        self.descent = Descent(tail, optimizer, recipe)
        self._copies: list[Flat[Tail]] = []
        self._last: Moment | None = None

    def forks(self, count: int) -> list[TrainedTail]:
        """Return `count` copies with the same weights and fresh optimisers (SFLV1).

        The modules are made once and lent again in the next round.
        """
        while len(self._copies) < count:
            self._copies.append(Flat(copy_trained(self.flat.module)))
        for flat in self._copies[:count]:
            flat.load(self.flat.vector.detach())
        return [TrainedTail(flat, *self._spec) for flat in self._copies[:count]]

    def weights(self) -> Weights:
        """Return a copy of the weights, as they are sent."""
        return Weights.of(self.flat.numpy())

    def serve(
        self,
        arrivals: Mapping[int, Arrival],
        weights: Mapping[int, float],
        at: StepId,
        graphs: GraphMemory,
    ) -> Served | HalfServed:
        """Differentiate sum_k weights[k] loss_k; changes nothing."""
        return self.exchange.serve(self.flat, arrivals, weights, at, graphs)

    def step(
        self, arrivals: Mapping[int, Arrival], at: StepId, graphs: GraphMemory, moment: Moment
    ) -> Served | HalfServed:
        """Serve one client and step, at once or when it has answered, unless its loss failed.

        `moment` says where in the tail's round the step is.
        """
        result = self.serve(arrivals, dict.fromkeys(arrivals, 1.0), at, graphs)
        if isinstance(result, HalfServed):
            resume = result.resume
            return replace(result, resume=lambda answers: self._stepped(resume(answers), moment))
        return self._stepped(result, moment)

    def descend(self, gradient: Tensor, moment: Moment) -> None:
        """Take one step of the optimiser, at a moment of the tail's round."""
        self.descent.step(gradient, moment)
        self._last = moment

    def descend_apart(self, gradients: Sequence[Tensor], moment: Moment) -> None:
        """Become the mean of copies of this tail, each of which steps on one of `gradients`.

        Copies begin with what its optimiser remembers, of which the mean is taken, too.
        """
        start, ends = self._memory(), []
        for gradient in gradients:
            self._remember(start)
            self.descend(gradient, moment)
            ends.append(self._memory())
        self._remember({k: total([end[k] for end in ends]) / len(ends) for k in ends[0]})

    def finish(self) -> TrainedTail:
        """Take a step on what is left of accumulated gradients, at the end of a round."""
        if self._last:
            finish([self.descent], self._last)
        return self

    def _memory(self) -> dict[str, Tensor]:
        """Return a copy of the weights and of what the optimiser remembers."""
        found = {TAIL: self.flat.vector.detach(), **self.descent.state()}
        return {name: value.clone() for name, value in found.items()}

    def _remember(self, memory: Mapping[str, Tensor]) -> None:
        self.flat.load(memory[TAIL])
        self.descent.restore({k: value for k, value in memory.items() if k != TAIL})

    def _stepped(self, served: Served, moment: Moment) -> Served:
        if served.cuts:
            self.descend(served.gradient, moment)
        return served
