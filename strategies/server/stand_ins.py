"""The server's part of clients that are cut before the deepest cut of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.link import Arrival
from fl_split.exchange.records import HEAD, Weights
from fl_split.exchange.stand_in import Shallower, StandIn
from fl_split.models.cut import Head, Tail
from fl_split.optimizers import Optimizer, scaled
from fl_split.payload import Payload
from fl_split.recipe.descent import PLAIN, Recipe
from fl_split.recipe.precision import FP32, Precision
from fl_split.recipe.schedules import Moment
from fl_split.seeds import StepId


@dataclass
class StandIns:
    """What the server trains for clients of a run, by client; nothing where all are cut alike.

    Attributes
    ----------
    shallower : Mapping
        Where clients are cut that are not cut at the deepest place.
    optimizer, recipe : Optimizer, Recipe
        Those of heads.
    precision, graphs : Precision, GraphMemory
        How passes are computed, and the server's room for graphs.
    """

    shallower: Mapping[int, Shallower] = field(default_factory=dict)
    optimizer: Optimizer | None = None
    recipe: Recipe = PLAIN
    precision: Precision = FP32
    graphs: GraphMemory = field(default_factory=GraphMemory)
    _lent: dict[int, StandIn] = field(default_factory=dict)
    _idle: dict[Shallower, list[StandIn]] = field(default_factory=dict)
    _sent: dict[Shallower, tuple[Weights, Weights]] = field(default_factory=dict)

    def begin(
        self, client: int, weights: Mapping[str, Weights], rate: float
    ) -> Mapping[str, Weights]:
        """Begin a client's round with global weights; return what of these the client gets.

        The learning rate of its head is multiplied by `rate`.
        """
        place = self.shallower.get(client)
        if place is None or HEAD not in weights:
            return weights
        whole, optimizer = weights[HEAD], self.optimizer
        assert optimizer is not None
        stand_in = self._lent.get(client) or self._made(place)
        self._lent[client] = stand_in
        stand_in.begin(whole.numpy(), scaled(optimizer, rate), self.recipe)
        last, sent = self._sent.get(place, (None, None))
        if last is not whole or sent is None:  # most clients of a round get the same
            sent = Weights.of(place.of_client(whole.numpy()))
            self._sent[place] = whole, sent
        return {**weights, HEAD: sent}

    def end(
        self, client: int, weights: Mapping[str, Weights], moment: Moment
    ) -> dict[str, Weights]:
        """Return what a client ended with as if it had been cut at the deepest place."""
        stand_in = self._lent.pop(client, None)
        if stand_in is None:
            return dict(weights)
        self._idle.setdefault(stand_in.place, []).append(stand_in)
        own = weights[HEAD].numpy()
        return {**weights, HEAD: Weights.of(stand_in.end(own, moment.before))}

    def receiver(self, client: int, tail: Tail) -> Tail:
        """Return what takes the payloads of a client: `tail`, or what stands before it."""
        place = self.shallower.get(client)
        return place.middle if place else tail

    def head(self, client: int, deepest: Head) -> Head:
        """Return the head of a client: `deepest`, or one that is cut before."""
        place = self.shallower.get(client)
        return place.head if place else deepest

    def forward(self, client: int, arrival: Arrival, at: StepId) -> tuple[Arrival, int]:
        """Return what the tail is fed, and operations.

        It is what came where the server stands in for nothing.
        """
        stand_in = self._lent.get(client)
        if stand_in is None:
            return arrival, 0
        return stand_in.forward(arrival, at), stand_in.work[0]

    def backward(self, client: int, cut: Payload) -> tuple[Payload, int]:
        """Return the cut gradient that a client is sent, and operations.

        It is `cut` itself where the server stands in for nothing.
        """
        stand_in = self._lent.get(client)
        if stand_in is None:
            return cut, 0
        return stand_in.backward(cut), stand_in.work[1]

    def learn(self, client: int, moment: Moment) -> None:
        """Step what stands in for a client, which steps its own head."""
        if stand_in := self._lent.get(client):
            stand_in.learn(moment)

    def take_back(self) -> None:
        """Take back all that stand in for clients which never ended their round."""
        for stand_in in self._lent.values():
            stand_in.release()
            self._idle.setdefault(stand_in.place, []).append(stand_in)
        self._lent.clear()

    def _made(self, place: Shallower) -> StandIn:
        """Return one that is idle, or make one: modules take long to make."""
        idle = self._idle.setdefault(place, [])
        return idle.pop() if idle else StandIn(place, self.precision, self.graphs)
