"""Stages that the server trains in the place of a client whose cut is not the deepest one.

    client: head -> encode ─── payload ───►  decode -> stand-in -> tail      :server
    client: head <─ gradient ◄────────────── stand-in <────────────┘

Heads of a run may be cut at several places. What is a client's own model ends at the deepest cut,
whoever computes it: of a client that is cut before, the server holds the stages in between. They
begin a round with the global weights, step when the head steps, with the optimiser of heads, and
are averaged as a part of the client's head. So strategies see what they would see if all clients
were cut at the deepest place, and without compression results are the same to the bit, but for
dropout, which is drawn anew, and for clipping, which sees the norm of each part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.link import Arrival
from fl_split.exchange.split import randomness
from fl_split.flat import Flat, copy_trained, trained
from fl_split.models.cut import Head, Tail
from fl_split.optimizers import Optimizer
from fl_split.payload import Payload
from fl_split.ragged import run
from fl_split.recipe.descent import Descent, Recipe, finish
from fl_split.recipe.precision import Precision
from fl_split.recipe.schedules import Moment
from fl_split.seeds import StepId

TOKENS = "tokens"
"""Name of what a stand-in hands on: its cut gradient comes back under the same."""


@dataclass(frozen=True, eq=False)
class Shallower:
    """A head that is cut before the deepest cut, and the stages from there to the deepest cut.

    Attributes
    ----------
    head, middle : Head, Tail
        The client's part, and what the server holds for the client. Both share their modules with
        the head of the deepest cut.
    start, stop : int
        The middle's weights are these numbers of the deepest head's vector; the others are the
        client's, in their order.
    """

    head: Head
    middle: Tail
    start: int
    stop: int

    @classmethod
    def of(cls, head: Head, middle: Tail, deepest: Head) -> Shallower:
        """Find the weights of both in the vector of the `deepest` head.

        Raises
        ------
        ValueError
            One of them has nothing to train, or the deepest head has other weights than both.
        """
        own, between, whole = ([*map(id, trained(module))] for module in (head, middle, deepest))
        if not own or not between:
            raise ValueError("a stage between two cuts, or before the first, has nothing to train")
        place = whole.index(between[0]) if between[0] in whole else 0
        if [*own[:place], *between, *own[place:]] != whole:
            raise ValueError("the weights of a stage are not in one piece of the head's vector")
        sizes = [parameter.numel() for parameter in trained(deepest)]
        start = sum(sizes[:place])
        return cls(head, middle, start, start + sum(sizes[place : place + len(between)]))

    def of_client(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the client gets of a deepest head's weights (P,)."""
        return np.concatenate([vector[: self.start], vector[self.stop :]])

    def of_server(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the rest of them, which the server keeps."""
        return vector[self.start : self.stop]

    def joined(self, own: NDArray[np.float32], middle: NDArray[np.float32]) -> NDArray[np.float32]:
        """Put both together again."""
        return np.concatenate([own[: self.start], middle, own[self.start :]])


class StandIn:
    """The stages between the cut of one client and the deepest one, in training on the server.

    Parameters
    ----------
    place : Shallower
        Where the client is cut.
    precision, graphs : Precision, GraphMemory
        How passes are computed, and the server's room for graphs between two messages.

    Attributes
    ----------
    work : tuple[int, int]
        Operations of the present step: forward, backward.
    """

    def __init__(self, place: Shallower, precision: Precision, graphs: GraphMemory) -> None:
        self.place, self.precision, self.graphs = place, precision, graphs
        self.flat = Flat(copy_trained(place.middle))
        self.flat.module.part = "head"
        self._came: Arrival | None = None
        self._at: StepId | None = None
        self._output: Tensor | None = None
        self._gradient: Tensor | None = None
        self._bytes = 0
        self.work = 0, 0

    def begin(self, weights: NDArray[np.float32], optimizer: Optimizer, recipe: Recipe) -> None:
        """Enter a round with the weights of a deepest head (P,), and a fresh optimiser."""
        self.release()
        self.flat.load(self.place.of_server(weights))
        self.descent = Descent(self.flat, optimizer, recipe)

    def forward(self, arrival: Arrival, at: StepId) -> Arrival:
        """Return what the tail is fed of a payload; keep the graph, if there is room."""
        self.release()
        self._came, self._at = arrival, at
        output = self._run(arrival, at)
        size = self.flat.module.activation_bytes(arrival.rows, arrival.tokens)
        if self.graphs.take(size):
            self._output, self._bytes = output, size
        counts = [self.place.middle.row_flops(n) for n in arrival.received.lengths.tolist()]
        self.work = sum(one for one, _ in counts), sum(both - one for one, both in counts)
        leaf = output.detach().requires_grad_()
        return Arrival({TOKENS: leaf}, replace(arrival.received, tokens=leaf))

    def backward(self, cut: Payload) -> Payload:
        """Turn the cut gradient of what went on into that of what came."""
        assert self._came is not None and self._at is not None
        output = self._run(self._came, self._at) if self._output is None else self._output
        leaves = self._came.leaves
        of_output = cut.carried[TOKENS]
        gradient, found = self.precision.differentiate(
            self.flat, [output], [of_output], inputs=[*leaves.values()]
        )
        self.release()
        self._gradient = gradient
        return Payload(dict(zip(leaves, found, strict=True)))

    def learn(self, moment: Moment) -> None:
        """Step, now that the client has its cut gradient: its head steps, too."""
        assert self._gradient is not None
        self.descent.step(self._gradient, moment)
        self._gradient = None

    def end(self, own: NDArray[np.float32], moment: Moment) -> NDArray[np.float32]:
        """End the round; return the weights of the deepest head, with the client's own."""
        self.release()
        finish([self.descent], moment)
        return self.place.joined(own, self.flat.numpy())

    def release(self) -> None:
        """Forget the graph."""
        self.graphs.give(self._bytes)
        self._came, self._at, self._output, self._bytes = None, None, None, 0

    def _run(self, arrival: Arrival, at: StepId) -> Tensor:
        """Run the stages, as the client would."""
        module, received = self.flat.module, arrival.received
        with (
            torch.enable_grad(),
            randomness(module, "stand-in", at),
            self.precision.forward(received.tokens),
        ):
            output = run(module, received.tokens, received.counts).float()
        output.register_hook(torch.Tensor.contiguous)  # as of a head: see encode
        return output
