"""One virtual client: its head in training, kept live or saved between two messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch
from fl_split.exchange.records import END, GO_ON, HEAD, HELD, ROUND, TAIL, Record, Weights
from fl_split.exchange.split import head_gradient
from fl_split.exchange.stacked import StackSlot, head_gradients
from fl_split.flat import Flat, copy_trained, flatten, trained
from fl_split.models.cut import Head, Tail
from fl_split.optimizers import scaled
from fl_split.payload import Payload
from fl_split.recipe.descent import Descent, descend, finish
from fl_split.recipe.schedules import Moment
from fl_split.seeds import StepId
from simulations.clients import kept_exits
from simulations.clients.epochs import Epochs
from simulations.clients.state import ClientState
from simulations.clients.worker import Worker
from strategies.server.assignment import USUAL, Assignment


@dataclass
class Client:
    """A virtual client in training; what an exchange may ask of it is in ClientSide.

    A head received from the server starts a fresh optimiser, also of exits that the client has
    kept; a client that keeps its own head keeps its optimiser too.

    Attributes
    ----------
    graph, graph_bytes : Payload, int
        The payload of the present step with its autograd graph, if it was kept.
    slot : StackSlot, optional
        Where the graph begins, if the head ran as one of several.
    ready : Payload or Tensor, optional
        What a stack has computed for this client ahead of :meth:`forward` or :meth:`backward`.
    """

    worker: Worker
    partition: int = -1
    head: Flat[Head] = field(init=False)
    descent: Descent = field(init=False)
    memory: dict[str, Tensor] = field(default_factory=dict)
    place: StepId | None = None
    assignment: Assignment = USUAL
    keeps_head: bool = False
    graph: Payload | None = None
    graph_bytes: int = 0
    slot: StackSlot | None = None
    ready: Payload | Tensor | None = None

    def __post_init__(self) -> None:
        self.head = Flat(copy_trained(self.worker.head))

    def begin(self, record: Record) -> None:
        """Enter a round with the head of a BEGIN, or without one with the client's own."""
        seed, number = self.worker.epochs.seed, int(record.number(ROUND))
        self.place = StepId(seed, number, self.partition, 0)
        self.release()
        self.assignment = Assignment.told(record.numbers)
        if record.action == GO_ON:
            self.keep_head()
        else:
            self.keeps_head = False
            self.head.load(record.weights[HEAD].numpy())
            if self.head.num_private:
                self.head.load_private(kept_exits.kept(self.memory, self.worker.head))
            self.descent = self._fresh()

    def keep_head(self) -> None:
        """Have a head of its own: the one it has kept, or the one that every run starts from."""
        if not self.keeps_head:
            self.keeps_head = True
            self.head.load(flatten(trained(self.worker.head)))
            self.descent = self._fresh()

    def _fresh(self) -> Descent:
        optimizer = scaled(self.worker.head_optimizer, self.assignment.rate)
        return Descent(self.head, optimizer, self.worker.recipe)

    @property
    def link(self) -> Link:
        """The road to the server."""
        return self.worker.link

    @property
    def epochs(self) -> Epochs:
        """Which samples make up which step of this client's round."""
        return self.worker.epochs.asked(self.assignment)

    @property
    def at(self) -> StepId:
        """The present step.

        Raises
        ------
        RuntimeError
            There is none.
        """
        if self.place is None:
            raise RuntimeError("no round in progress: this client's state was lost")
        return self.place

    @property
    def num_samples(self) -> int:
        """Samples of this client's partition."""
        return len(self.worker.data.partitions[self.partition])

    def has_batch(self) -> bool:
        """Tell whether a round is going on that has another step for this client."""
        if self.place is None:
            return False
        return self.place.step < self.epochs.num_steps(self.num_samples)

    @property
    def batch_samples(self) -> int:
        """Samples of the present step."""
        return self.epochs.batch_samples(self.at.step, self.num_samples)

    def rows(self) -> NDArray[np.int64]:
        """Row numbers (B,) of the present step's samples in the data."""
        return self._rows(self.at)

    def _rows(self, step: StepId) -> NDArray[np.int64]:
        rows = self.worker.data.partitions[self.partition]
        return rows[self.epochs.batch(step, len(rows))]

    def batch(self) -> Batch:
        """Return the samples of the present step."""
        worker = self.worker
        return worker.data.train_batch(self.rows(), worker.augment, self.at, worker.device)

    def _look_ahead(self) -> None:
        """Begin to decode the next step's images, if they are, while the server is at work."""
        data, following = self.worker.data, self.at.next()
        if data.decodes and following.step < self.epochs.num_steps(self.num_samples):
            data.prefetch(self._rows(following))

    def forward(self) -> Payload:
        """Return what is sent in the present step, with its graph."""
        ready, self.ready = self.ready, None
        return ready if isinstance(ready, Payload) else self._smash()

    def _smash(self) -> Payload:
        return self._smashed()[0]

    def _smashed(self) -> tuple[Payload, StackSlot | None]:
        """Return what is sent, and where its graph begins if the head runs as one of several."""
        batch, worker = self.batch(), self.worker
        self._look_ahead()
        self.release()
        samples = len(batch.labels)
        payload, slot = worker.stacks.smash_alone(self.head, batch, self.at)
        if payload is None:
            head, codec = self.head.module, self.link.codec
            with worker.measure(1, samples):
                payload = worker.exchange.smash(head, codec, batch, self.at, self.memory)
        self.keep(payload, samples, slot)
        return payload, slot

    def up(self, payload: Payload, sent_at: StepId | None = None) -> bytes:
        """Return what is sent of smashed data, of which a codec may remember earlier ones.

        Payloads may be counted otherwise than steps; then this one is that of `sent_at`.
        """
        if not self.link.codec.remembers:
            return self.link.up(payload, sent_at or self.at)
        samples = torch.from_numpy(self.epochs.batch(self.at, self.num_samples))
        return self.link.up(payload, sent_at or self.at, samples, self.memory)

    def backward(self, record: Record | None) -> Tensor:
        """Return the head's gradient for the cut gradient in `record`, or for its own loss alone.

        Where the graph of the forward was not kept, or is that of a whole stack, the
        forward is repeated: same bits.
        """
        ready, self.ready = self.ready, None
        if isinstance(ready, Tensor):
            return ready
        if record and record.step != self.at.step:
            raise RuntimeError(f"a gradient of step {record.step} in step {self.at.step}")
        gradient = self.link.read(record.sent(), self.at) if record else None
        if self.slot and not self.worker.stacks.is_filled_up:
            self.worker.stacks.count(apart=1)
            self.release()
        graph, slot = (self.graph, self.slot) if self.graph else self._smashed()
        if slot and gradient:
            return head_gradients([slot], [graph], [gradient])[0]
        return head_gradient(self.head, graph, gradient, self.worker.exchange.precision)

    def learn(self, gradient: Tensor) -> None:
        """Step the head on its gradient for the present step, and go on to the next."""
        self.descent.step(gradient, self._moment)
        self.skip()

    def learn_with(self, tail: Descent, gradients: Sequence[Tensor]) -> None:
        """Step the head and a tail on their two gradients, and go on to the next batch."""
        descend([self.descent, tail], gradients, self._moment)
        self.skip()

    def finish_with(self, tail: Descent) -> None:
        """Step head and tail on what is left of accumulated gradients, before the round ends."""
        finish([self.descent, tail], self._moment.before)

    @property
    def _moment(self) -> Moment:
        at = self.at
        return Moment(at.round, at.step, 1, self.epochs.num_steps(self.num_samples))

    def skip(self) -> None:
        """Go on to the next batch without learning from the present one."""
        self.release()
        self.place = self.at.next()

    @property
    def tail(self) -> Flat[Tail]:
        """The tail of a client that trains the whole model, to be loaded before use."""
        return self.worker.scratch_tail()

    def load_tail(self, weights: NDArray[np.float32] | None) -> Descent:
        """Load weights into `tail`, None those that every run starts from; a fresh optimiser."""
        self.tail.load(self.initial_tail() if weights is None else weights)
        return Descent(self.tail, self.worker.tail_optimizer, self.worker.recipe)

    def initial_tail(self) -> NDArray[np.float32]:
        """Return the tail that every run starts from."""
        return flatten(trained(self.worker.tail)).cpu().numpy()

    def own_tail(self) -> NDArray[np.float32]:
        """Return the tail that the client has trained for itself, at first the initial one."""
        return self.memory[TAIL].cpu().numpy() if TAIL in self.memory else self.initial_tail()

    def stop(self) -> None:
        """Be in no round any more: nothing of it is kept live."""
        self.release()
        self.place = None

    def end(self) -> Record:
        """End the round: return the samples that the client holds, and a head that came."""
        finish([self.descent], self._moment.before)
        kept_exits.keep(self.memory, self.head)
        self.stop()
        weights = {} if self.keeps_head else {HEAD: Weights.of(self.head.numpy())}
        return Record(END, weights=weights, numbers={HELD: self.num_samples})

    def keep(self, graph: Payload, samples: int, slot: StackSlot | None = None) -> None:
        """Keep a graph until its gradient comes, if the process has room for it."""
        size = self.worker.graph_bytes(samples)
        if self.worker.graphs.take(size):
            self.graph, self.graph_bytes, self.slot = graph, size, slot

    def release(self) -> None:
        """Forget the graph."""
        self.worker.graphs.give(self.graph_bytes)
        self.graph, self.graph_bytes, self.slot, self.ready = None, 0, None, None

    def save(self) -> ClientState | None:
        """Return all that the next message needs; None if the round is over and nothing kept."""
        has_head = self.keeps_head or self.place is not None
        if not has_head and not self.memory:
            return None
        return ClientState(
            round=self.place.round if self.place else 0,
            step=self.place.step if self.place else 0,
            keeps_head=self.keeps_head,
            assignment=self.assignment,
            head=self.head.vector.detach() if has_head else None,
            moments=self.descent.state() if has_head else {},
            memory=self.memory,
        )

    def restore(self, state: ClientState) -> None:
        """Be where :meth:`save` was called."""
        seed = self.worker.epochs.seed
        if state.round:
            self.place = StepId(seed, state.round, self.partition, state.step)
        self.keeps_head, self.assignment = state.keeps_head, state.assignment
        if state.head is not None:
            self.head.load_all(state.head)
            self.descent = self._fresh()
            self.descent.restore(state.moments)
        self.memory = {k: value.to(self.worker.device) for k, value in state.memory.items()}
