"""What one process keeps for the clients it serves, and how it runs several of them as one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from fl_split.activations import saved
from fl_split.codecs import Codec
from fl_split.exchange.split import pack
from fl_split.exchange.stacked import (
    MEMBERS,
    GroupedHead,
    Seat,
    can_group,
    head_gradients,
    is_faster,
    smash_together,
)
from fl_split.flat import Flat, copy_trained
from fl_split.models.cut import Head, Tail
from fl_split.optimizers import Optimizer
from fl_split.payload import Payload
from simulations.clients.client import Client
from simulations.clients.half_way import HalfWay
from simulations.clients.schedule import Schedule
from simulations.data.samples import Table

MOST_NUMBERS = 2**16
"""Smashed numbers of a batch up to which it may pay to run clients in groups."""


MOST_APART = 64
"""Clients of groups that came back alone, beyond those that did not, until groups are given up."""


@dataclass
class Worker:
    """What one process keeps for all the virtual clients it serves, and nothing that is theirs."""

    data: Table
    head: Head
    tail: Tail
    codec: Codec
    downlink: Codec
    head_optimizer: Optimizer
    tail_optimizer: Optimizer
    schedule: Schedule
    graph_bytes: int = 2 * 2**30
    _grouped: GroupedHead | None = None
    _together: int = 0
    _apart: int = 0
    _is_faster: dict[int, bool] = field(default_factory=dict)
    _idle: list[Client] = field(default_factory=list)
    _tail: Flat[Tail] | None = None
    _kept: int = 0
    _sizes: dict[int, int] = field(default_factory=dict)

    def keep(self, client: Client, samples: int, graph: Payload, seat: Seat | None = None) -> None:
        """Let `client` keep its graph if at most `graph_bytes` are kept in all.

        Who may not keep it repeats the forward when the cut gradient comes.
        """
        if self.has_room(samples, 1):
            size = self._sizes.get(samples, 0)
            self._kept += size
            client.graph, client.graph_size, client.seat = graph, size, seat

    def has_room(self, samples: int, graphs: int) -> bool:
        """Tell whether so many more graphs of batches of `samples` may be kept."""
        return self._kept + graphs * self._sizes.get(samples, 0) <= self.graph_bytes

    def release(self, client: Client) -> None:
        """Forget the graph of `client`."""
        self._kept -= client.graph_size
        client.graph, client.graph_size, client.seat = None, 0, None

    @contextmanager
    def measure(self, clients: int, samples: int) -> Iterator[None]:
        """Note, the first time, how many bytes autograd saves for a batch of `samples`.

        Graphs of so many `clients` are made, together, in the block. The weights count, which
        only a group has copies of: so one measurement, of either, serves both.
        """
        if samples in self._sizes:
            yield
            return
        with saved() as sizes:
            yield
        self._sizes[samples] = sum(sizes.values()) // clients

    def grouped(self, samples: int) -> GroupedHead | None:
        """Return what runs several heads at once, where that is faster for such batches.

        Not if those that went forward together mostly do not come back together, as the
        order of a strategy may have it: each of them repeats its forward alone.
        """
        if self._apart > self._together + MOST_APART:
            return None
        if self._grouped is None and can_group(self.head):
            self._grouped = GroupedHead(self.head)
        numbers = samples * math.prod(self.head.smashed_shape)
        if self._grouped is None or numbers > MOST_NUMBERS or self._copies() > self.graph_bytes:
            return None
        if samples not in self._is_faster:
            shape = samples, *self.data.pixels.shape[1:]
            self._is_faster[samples] = is_faster(self._grouped, self.head, shape)
        return self._grouped if self._is_faster[samples] else None

    def _copies(self) -> int:
        """Bytes of a trial: the weights of a group, stacked too, and the gradients of both."""
        return 4 * MEMBERS * sum(4 * parameter.numel() for parameter in self.head.parameters())

    def count(self, together: int, apart: int) -> None:
        """Count clients that went forward in a group by how their gradients came back."""
        self._together += together
        self._apart += apart

    def lend(self) -> Client:
        """Return a client shell; its weights are whatever was left in it."""
        if self._idle:
            return self._idle.pop()
        return Client(self, Flat(copy_trained(self.head)))

    def give_back(self, client: Client) -> None:
        """Take a shell back whose round is over or whose state has been saved.

        It keeps its modules, which take long to make, but no optimiser.
        """
        self.release(client)
        client.place, client.has_own_head, client.own_tail = None, False, None
        client.half_way = HalfWay()
        vars(client).pop("optimizer", None)  # with its moments; a round begins with a new one
        self._idle.append(client)

    def scratch_tail(self) -> Flat[Tail]:
        """Return the one tail in which clients of this process train locally, in turn."""
        if self._tail is None:
            self._tail = Flat(copy_trained(self.tail))
        return self._tail


def forward_together(clients: Sequence[Client]) -> list[Payload]:
    """Return what clients with batches of one size send; the same bits as alone."""
    worker, rows = clients[0].worker, np.concatenate([client.rows() for client in clients])
    samples = len(rows) // len(clients)
    grouped = worker.grouped(samples)
    if grouped is None:
        return [client.forward() for client in clients]
    for client in clients:
        worker.release(client)
    heads, places = [client.head for client in clients], [client.here for client in clients]
    batch = (*worker.data.batch(rows), worker.data.num_classes, places)
    with worker.measure(len(clients), samples):
        found = smash_together(grouped, heads, worker.codec, *batch)
    if worker.has_room(samples, len(clients)):  # all or none: one seat keeps the whole run
        for client, (payload, seat) in zip(clients, found, strict=True):
            worker.keep(client, samples, payload, seat)
    return [
        pack(worker.codec, payload, place)
        for place, (payload, _) in zip(places, found, strict=True)
    ]


def backward_together(clients: Sequence[Client], gradients: Sequence[Payload]) -> list[Tensor]:
    """Return the gradients of the heads of clients that went forward together."""
    clients[0].worker.count(len(clients), 0)
    seats = [client.seat for client in clients if client.seat]
    graphs = [client.graph for client in clients if client.graph]
    return list(head_gradients(seats, graphs, gradients))
