"""One virtual client: the head's side of the exchange, kept live or in Flower's context."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from torch import Tensor

from fl_split.codecs import Identity
from fl_split.exchange.split import Place, head_gradient, pack, smash
from fl_split.exchange.stacked import Seat
from fl_split.exchange.ushape import add_end, smash_unlabelled
from fl_split.exchange.whole import Proximal, train_step
from fl_split.flat import Flat, descend, flatten, trained
from fl_split.models.cut import Head
from fl_split.optimizers import moments, scaled, set_moments
from fl_split.payload import Payload
from simulations.clients.half_way import HalfWay
from simulations.clients.schedule import Schedule

if TYPE_CHECKING:
    from simulations.clients.worker import Worker

PLACE, HEAD, OPTIMIZER = "place", "head", "optimizer"
"""Records of ``context.state``: where in the run, flat head weights, optimiser state."""

TAIL, TAIL_OPTIMIZER = "tail", "tail-optimizer"
"""The same of a client that has a whole model of its own."""


@dataclass(frozen=True)
class OwnTail:
    """The tail of a client that trains a whole model of its own, between two rounds."""

    weights: np.ndarray
    moments: dict[str, Tensor]


@dataclass
class Client:
    """A virtual client in training.

    A head received from the server starts a fresh optimiser; a client that keeps its own
    head keeps its optimiser too.
    """

    worker: Worker
    head: Flat[Head]
    optimizer: torch.optim.Optimizer = field(init=False)
    place: Place | None = None
    share: float = 1.0
    graph: Payload | None = None
    graph_size: int = 0
    seat: Seat | None = None
    has_own_head: bool = False
    own_tail: OwnTail | None = None
    half_way: HalfWay = field(default_factory=HalfWay)

    def begin(
        self, partition: int, server_round: int, head: np.ndarray | None, share: float = 1.0
    ) -> None:
        """Enter a round with the server's head, or (None) with the client's own.

        `share` is that of the batch size; the learning rate is reduced with it.
        """
        self.place = Place(self.worker.schedule.seed, server_round, partition, 0)
        self.worker.release(self)
        self.half_way, self.share = HalfWay(), share
        if head is None and self.has_own_head:
            return
        self.has_own_head = head is None
        self.head.load(flatten(trained(self.worker.head)) if head is None else head)
        self.optimizer = self._fresh_optimizer()

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        return scaled(self.worker.head_optimizer, self.share).build(self.head.vector)

    @property
    def schedule(self) -> Schedule:
        """Which samples make up which step of this client's round."""
        return self.worker.schedule.reduced(self.share)

    def sit_out(self) -> None:
        """Be at the end of the round, so that nothing of it is kept live."""
        self.place = replace(self.here, step=self.schedule.num_steps(self.num_samples))

    @property
    def num_samples(self) -> int:
        """Samples of this client's partition."""
        return len(self.worker.data.partitions[self.here.client])

    def has_batch(self) -> bool:
        """Tell whether a round is going on that has another step for this client."""
        if self.place is None:
            return False
        return self.place.step < self.schedule.num_steps(self.num_samples)

    @property
    def batch_samples(self) -> int:
        """Samples of the present step."""
        return self.schedule.batch_samples(self.here.step, self.num_samples)

    def rows(self) -> np.ndarray:
        """Row numbers (B,) of the present step's samples in the data."""
        rows = self.worker.data.partitions[self.here.client]
        return rows[self.schedule.batch(self.here, len(rows))]

    def batch(self) -> tuple[Tensor, Tensor]:
        """Pixels (B, C, H, W) and labels (B,) of the present step."""
        return self.worker.data.batch(self.rows())

    @property
    def steps_taken(self) -> int:
        """Steps since the round began."""
        return self.here.step

    @property
    def here(self) -> Place:
        """The present step.

        Raises
        ------
        RuntimeError
            There is none.
        """
        if self.place is None:
            raise RuntimeError("no round in progress: this client's state was lost")
        return self.place

    def forward(self) -> Payload:
        """Return what is sent in the present step."""
        return pack(self.worker.codec, self._smash(), self.here)

    def _smash(self) -> Payload:
        pixels, labels = self.batch()
        classes = self.worker.data.num_classes
        batch = (self.worker.codec, pixels, labels, classes, self.here)
        self.worker.release(self)
        with self.worker.measure(1, len(labels)):
            if self.head.module.end is None:
                payload = smash(self.head.module, *batch)
            else:
                payload, self.half_way.targets = smash_unlabelled(self.head.module, *batch)
        self.worker.keep(self, len(labels), payload)
        return payload

    def backward(self, gradient: Payload) -> Tensor:
        """Return the head's gradient for the cut gradient of the present step.

        Where the graph of the forward was not kept, or is that of a whole group, the
        forward is repeated: same bits.
        """
        if self.seat:
            self.worker.count(0, 1)
            self.worker.release(self)
        return head_gradient(self.head, self.graph or self._smash(), gradient)

    def learn(self, gradient: Tensor) -> None:
        """Step the head on its gradient for the present step, and go on to the next.

        In a U-shape the end steps with it: the same as if it had stepped at once.
        """
        if self.half_way.gradient is not None:
            gradient = add_end(self.head, gradient, self.half_way.gradient)
        self.half_way = HalfWay()
        descend(self.optimizer, self.head, gradient)
        self.worker.release(self)
        self.place = self.here.next()

    def train_locally(
        self, tail: np.ndarray | None, mu: float = 0.0
    ) -> tuple[np.ndarray, float, int]:
        """Train head and `tail`, or its own, to the end of the round.

        `mu` is the weight of FedProx's pull to where training starts. Returns tail, mean
        loss and samples.
        """
        flat = self.worker.scratch_tail()
        own = self.present_tail() if tail is None else OwnTail(tail, {})
        flat.load(own.weights)
        optimizers = [self.optimizer, self.worker.tail_optimizer.build(flat.vector)]
        set_moments(optimizers[1], flat.vector, own.moments)
        proximal = Proximal.at(mu, self.head, flat)
        classes = self.worker.data.num_classes
        losses, samples = [], 0
        while self.has_batch():
            pixels, labels = self.batch()
            batch = (Identity(), pixels, labels, classes, self.here)
            losses.append(train_step(self.head, flat, optimizers, *batch, proximal))
            samples += len(labels)
            self.place = self.here.next()
        if tail is None:
            self.own_tail = OwnTail(flat.numpy(), moments(optimizers[1], flat.vector))
        return flat.numpy(), sum(losses) / len(losses), samples

    def present_tail(self) -> OwnTail:
        """Its own tail, or if it has none yet the one that every run starts from."""
        weights = flatten(trained(self.worker.tail)).numpy()
        return self.own_tail or OwnTail(weights, {})

    def save(self, state: RecordDict) -> None:
        """Write everything the next message needs into a context's state."""
        state.clear()
        if not self.has_own_head and not self.has_batch():
            return  # the round is over and the head is with the server
        place = dict(zip(("round", "client", "step"), self.here.path(), strict=True))
        state[PLACE] = ConfigRecord({**place, "own-head": self.has_own_head, "share": self.share})
        state[HEAD] = ArrayRecord({HEAD: Array(self.head.numpy())})
        found = moments(self.optimizer, self.head.vector)
        state[OPTIMIZER] = _record(found)
        self.half_way.save(state)
        if self.own_tail:
            state[TAIL] = ArrayRecord({TAIL: Array(self.own_tail.weights)})
            state[TAIL_OPTIMIZER] = _record(self.own_tail.moments)

    def restore(self, state: RecordDict) -> None:
        """Read back what :meth:`save` wrote; nothing saved is a client that never began."""
        if PLACE not in state:
            return
        place = state.config_records[PLACE]
        numbers = [int(str(place[key])) for key in ("round", "client", "step")]
        self.place = Place(self.worker.schedule.seed, *numbers)
        self.has_own_head, self.share = bool(place["own-head"]), float(str(place.get("share", 1.0)))
        self.head.load(state.array_records[HEAD][HEAD].numpy())
        self.optimizer = self._fresh_optimizer()
        set_moments(self.optimizer, self.head.vector, _tensors(state.array_records[OPTIMIZER]))
        self.half_way = HalfWay.restored(state)
        if TAIL in state:
            weights = state.array_records[TAIL][TAIL].numpy()
            self.own_tail = OwnTail(weights, _tensors(state.array_records[TAIL_OPTIMIZER]))


def _record(tensors: dict[str, Tensor]) -> ArrayRecord:
    return ArrayRecord({key: Array(value.numpy()) for key, value in tensors.items()})


def _tensors(record: ArrayRecord) -> dict[str, Tensor]:
    return {key: torch.from_numpy(array.numpy()) for key, array in record.items()}


class ResidentContext(Context):
    """A Flower context whose client stays live between messages.

    Given by engines that serve a node always from the same process. Within a round the
    client is kept as it is instead of going through ``state`` after each message; between
    rounds nothing but ``state`` is left of it.
    """

    def __init__(self, node_id: int, partition: int, worker: Worker) -> None:
        super().__init__(0, node_id, {"partition-id": partition}, RecordDict(), {})
        self.worker = worker
        self.client: Client | None = None

    def snapshot(self) -> RecordDict:
        """Return ``state`` as it would be, had the client not been kept live."""
        if self.client is not None:
            self.client.save(self.state)
        return self.state
