"""The contract of an exchange: what both halves of a model do with one batch.

A round of a client: the server sends BEGIN; the client answers with what :meth:`Exchange.send`
returns; each further message goes through :meth:`Exchange.receive`; an END ends it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fl_split.codecs import Codec, Mixed
from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.link import Arrival, Link
from fl_split.exchange.records import GRADIENT, HEAD, TAIL, Record, Weights
from fl_split.exchange.served import HalfServed, Served
from fl_split.flat import Flat
from fl_split.models.costs import backward_alone
from fl_split.models.cut import Head, Tail
from fl_split.payload import Payload
from fl_split.recipe.descent import Descent
from fl_split.recipe.loss import CrossEntropy
from fl_split.recipe.phases import Phases
from fl_split.recipe.precision import FP32, Precision
from fl_split.seeds import StepId


class Batch(NamedTuple):
    """Images (B, C, H, W) and labels (B,) of one step, and what labels are mixed with, if so."""

    pixels: Tensor
    labels: Tensor
    num_classes: int
    mixed: Mixed | None = None


class ClientSide(Protocol):
    """What an exchange may ask of a client.

    Attributes
    ----------
    head, descent : Flat[Head], Descent
        The client's weights, and how they are trained.
    memory : dict[str, Tensor]
        What the exchange must remember, from message to message and round to round; it is saved.
    """

    head: Flat[Head]
    descent: Descent
    memory: dict[str, Tensor]

    @property
    def link(self) -> Link:
        """The road to the server."""

    @property
    def at(self) -> StepId:
        """The present step; RuntimeError if there is none."""

    @property
    def tail(self) -> Flat[Tail]:
        """The tail of a client that trains the whole model, to be loaded before use."""

    @property
    def batch_samples(self) -> int:
        """Samples of the present step."""

    def load_tail(self, weights: NDArray[np.float32] | None) -> Descent:
        """Load weights into `tail`, None those that every run starts from; a fresh optimiser."""

    def begin(self, record: Record) -> None:
        """Enter a round, with the head of a BEGIN or with the client's own."""

    def has_batch(self) -> bool:
        """Tell whether the round has another step for this client."""

    def batch(self) -> Batch:
        """Return the samples of the present step."""

    def forward(self) -> Payload:
        """Return what the exchange's `smash` makes of the present batch; keep the graph."""

    def up(self, payload: Payload, sent_at: StepId | None = None) -> bytes:
        """Return what is sent of the present step's smashed data, packed as in step `sent_at`."""

    def backward(self, record: Record | None) -> Tensor:
        """Return the head's gradient for the cut gradient that has come, or for none."""

    def learn(self, gradient: Tensor) -> None:
        """Step the head, and go on to the next batch."""

    def learn_with(self, tail: Descent, gradients: Sequence[Tensor]) -> None:
        """Step the head and a tail on their two gradients, and go on to the next batch."""

    def finish_with(self, tail: Descent) -> None:
        """Step head and tail on what is left of accumulated gradients, before the round ends."""

    def skip(self) -> None:
        """Go on to the next batch without learning from the present one."""

    def end(self) -> Record:
        """End the round: return the samples that the client holds, and a head that came."""


class Flops(NamedTuple):
    """Operations of a client: before it sends a payload, and after the answer has come."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.forward + self.backward


class Step(NamedTuple):
    """One whole exchange in one process; `work` is its operations if they depend on the images."""

    loss: float
    of_head: Tensor
    of_tail: Tensor
    work: int | None = None


@dataclass(frozen=True, kw_only=True)
class Exchange(ABC):
    """One protocol. It keeps no state: what a client remembers is in `client.memory`.

    Attributes
    ----------
    loss : CrossEntropy
        What is minimised.
    precision, phases : Precision, Phases
        How passes are computed; what is trained in which rounds.
    trains_whole_models : bool
        Whether head and tail travel with BEGIN and END, and clients train both; else the head.
    can_stack : bool
        Whether several clients may run as one (:mod:`fl_split.exchange.stacked`).
    copies_kept : int
        Vectors like all its weights that a client holds beside model, gradients and moments.
    is_one_way : bool
        Whether clients learn by themselves: payloads go up, and nothing comes down.
    every : int
        Of so many batches of a client the first one goes up.
    """

    loss: CrossEntropy = field(default_factory=CrossEntropy)
    precision: Precision = FP32
    phases: Phases = field(default_factory=Phases)
    every: int = 1

    trains_whole_models: ClassVar[bool] = False
    can_stack: ClassVar[bool] = False
    copies_kept: ClassVar[int] = 0
    is_one_way: ClassVar[bool] = False

    @abstractmethod
    def receive(self, client: ClientSide, record: Record) -> Record | None:
        """Client: take what the server sent; return the answer, if it is not that of `send`.

        Raises
        ------
        ValueError
            A record whose action the exchange does not know, or that cannot be read.
        RuntimeError
            The client is not where the server takes it to be: its state was lost.
        """

    def send(self, client: ClientSide) -> Record:
        """Client: return what the server is to have next."""
        raise NotImplementedError("this exchange answers whatever it receives")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the weights that travel."""
        return (HEAD, TAIL) if self.trains_whole_models else (HEAD,)

    def travelling(self, weights: Mapping[str, Weights]) -> dict[str, Weights]:
        """Return what of the global `weights` goes to a client; as much comes back."""
        return {name: weights[name] for name in self.names}

    def smash(
        self, head: Head, codec: Codec, batch: Batch, at: StepId, memory: dict[str, Tensor]
    ) -> Payload:
        """Client: turn a batch into a payload with a live graph.

        The same arguments and weights give the same payload, bit for bit, so the forward can
        be repeated later when the graph could not be kept. `memory` gets what the client must
        remember.
        """
        raise NotImplementedError("this exchange sends no payloads")

    def step(
        self, head: Flat[Head], tail: Flat[Tail], link: Link, batch: Batch, at: StepId
    ) -> Step:
        """Take one whole exchange in one process."""
        raise NotImplementedError("this exchange is not taken step by step")

    @abstractmethod
    def flops(self, head: Head, tail: Tail) -> Flops:
        """Operations of a client's training on one image, less those of :meth:`answer_flops`."""

    def flops_of_round(self, number: int, head: Head, tail: Tail) -> Flops:
        """Return the same in a round, whose phase may train but a part; the first may differ."""
        return self.flops(head, tail)

    def learns_alone(self, head: Head, number: int) -> bool:
        """Tell whether a client learns in a round also where the server has nothing to say."""
        return head.learns_alone and "exits" in self.phases.trains(number)

    def flops_alone(self, number: int, head: Head) -> int:
        """Operations of a backward pass on one image where the server has nothing to say."""
        return backward_alone(head) if self.learns_alone(head, number) else 0

    def is_silent(self, number: int) -> bool:
        """Tell whether nothing crosses the cut in a round but weights."""
        return self.trains_whole_models

    def only_sends(self, number: int) -> bool:
        """Tell whether clients learn nothing in a round: each sends its samples, once in a run."""
        return False

    def serve(
        self,
        tail: Flat[Tail],
        arrivals: Mapping[int, Arrival],
        weights: Mapping[int, float],
        at: StepId,
        graphs: GraphMemory,
    ) -> Served | HalfServed:
        """Server: differentiate sum_k weights[k] loss_k.

        Changes nothing, so threads may share a tail. `at` says round and step.
        """
        raise NotImplementedError("this exchange sends no payloads")

    def answer(self, link: Link, cut: Payload, at: StepId) -> Record:
        """Server: return what a client whose payload was served is sent, the cut gradient."""
        return Record(GRADIENT, link.down(cut, at), step=at.step)

    def prepare(self, head: Head, tail: Tail, seed: int) -> None:  # noqa: B027  (most add nothing)
        """Add what the exchange trains beside the model, before a run; drawn from `seed`."""

    def answer_flops(self, head: Head, output: Payload) -> int:
        """Operations of a client on an output of :class:`HalfServed`."""
        raise NotImplementedError("this exchange asks clients for no answers")
