"""The clock: when each task of a round begins and ends, under a system.

A pure function of a task graph and of what a system is in this round. A task begins when all that
it waited for has ended; only the server has a queue. Events are taken by time, then by client,
then by number: nothing depends on what ran the clients.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simulations.system.coding import FREE, Coding, operations
from simulations.system.graph import DOWN, UP, Graph
from simulations.system.networks import Roads
from simulations.system.part import Numbers
from simulations.system.pools import Pool
from strategies.server.tasks import VALUES

FORWARD_SHARE = 1 / 3
"""Of the operations of a whole step: by count a backward pass has twice those of a forward one."""


@dataclass(frozen=True)
class Conditions:
    """What a system is in one round.

    Attributes
    ----------
    flops, backward : array
        (clients,) operations per second, and time of backward over that of forward.
    pool : float, optional
        Bit/s that all clients share, each way.
    begin : float
        Virtual seconds of the run when the round begins, for roads that change with time.
    codec, downlink : Coding
        What coding payloads and cut gradients costs.
    server_flops, cores : float, int
        Operations per second of a core of the server, and how many it has.
    in_order : bool
        Whether the server works in the order of the graph, instead of that of arrival.
    """

    flops: Numbers
    backward: Numbers
    roads: Roads
    server_flops: float
    cores: int = 1
    in_order: bool = False
    pool: float | None = None
    begin: float = 0.0
    codec: Coding = FREE
    downlink: Coding = FREE


@dataclass(frozen=True)
class Times:
    """When the tasks of a round happened, (n,) in seconds from its begin.

    Attributes
    ----------
    ready : array
        When all was there that a task waited for.
    begin, end : array
        When it was done.
    cause : array
        The task whose end let a task begin; -1 at the begin of the round.
    last : int
        The task whose end is the end of the round: clients that are late go on after it.
    """

    ready: Numbers
    begin: Numbers
    end: Numbers
    cause: NDArray[np.int64]
    last: int

    @property
    def seconds(self) -> float:
        """Length of the round."""
        return float(self.end[self.last]) if len(self.end) else 0.0

    def critical_path(self) -> list[int]:
        """Return the tasks that made the round as long as it is, the first one first."""
        path: list[int] = []
        number = self.last if len(self.end) else -1
        while number >= 0:
            path.append(number)
            number = int(self.cause[number])
        return path[::-1]


def alone(graph: Graph, now: Conditions) -> Numbers:
    """Return how long each task takes by itself, (n,) in seconds.

    Work of a client: operations over its device's speed, times the device's own ratio of backward
    to forward over the usual 2; of coding: those of the codec. What crosses: latency, and bits
    over the rate of the road. Work of the server: operations over the speed of a core.
    """
    client, amount = graph.clients, graph.amounts.astype(float)
    codes = graph.are(*VALUES)
    amount[codes] = operations(graph, now.codec, now.downlink)[codes]
    backward = now.backward[client] / 2
    whole = FORWARD_SHARE + (1 - FORWARD_SHARE) * backward
    stretch = np.select(
        [graph.are("backward"), graph.are("end", "train")], [backward, whole], default=1.0
    )
    latency = now.roads.latency[client]
    return np.select(
        [graph.are("wait"), graph.are(*UP), graph.are(*DOWN), graph.on_server],
        [
            1e-6 * amount,
            latency + 8 * amount / now.roads.up[client],
            latency + 8 * amount / now.roads.down[client],
            amount / now.server_flops,
        ],
        default=amount * stretch / now.flops[client],
    )


def time_round(graph: Graph, now: Conditions) -> Times:
    """Return when each task of a round happened, in seconds from its begin."""
    return _Run(graph, now).times()


READY, ENTERS, LEAVES = range(3)
"""What happens: a task is ready; its bits enter a pool; a pool has carried somebody's last bit."""


@dataclass
class _Run:
    """A round in progress: a heap of what happens next, and a queue before the server.

    An event is (time, client, number, what); `number` is a task, or where bits leave a pool the
    pool's state that this was foreseen in.
    """

    graph: Graph
    now: Conditions
    heap: list[tuple[float, int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.graph.kinds)
        self.alone = alone(self.graph, self.now).tolist()
        self.clients = self.graph.clients.tolist()
        followers, bounds = self.graph.followers()
        self.followers, self.bounds = followers.tolist(), bounds.tolist()
        self.missing = np.diff(self.graph.bounds).tolist()
        self.ready, self.begin, self.end = [0.0] * count, [0.0] * count, [0.0] * count
        self.cause, self.on_server = [-1] * count, self.graph.on_server.tolist()
        self.free = [(0.0, -1)] * self.now.cores  # when each core is, and after which task
        self.waits = self.graph.are("wait").tolist()
        works = self.graph.on_server & ~self.graph.are("wait")
        self.order = np.flatnonzero(works).tolist()[::-1]  # the next one last
        self.early: set[int] = set()
        self.pools = [Pool(self.now.pool), Pool(self.now.pool)] if self.now.pool else []
        roads = self.now.roads
        self.traced = [roads.traced_up, roads.traced_down] if roads.traced_up else []
        self.ways = np.where(
            self.graph.are(*UP), 0, np.where(self.graph.are(*DOWN), 1, -1)
        ).tolist()

    def times(self) -> Times:
        """Take events until none is left."""
        roots = np.flatnonzero(np.diff(self.graph.bounds) == 0).tolist()
        self.heap = [(0.0, self.clients[number], number, READY) for number in roots]
        heapq.heapify(self.heap)
        while self.heap:
            at, client, number, what = heapq.heappop(self.heap)
            if what == LEAVES:
                self._leave(at, ~client, number)
            elif what == ENTERS:
                self._enter(at, number)
            elif self.waits[number]:
                self._finish(number, at, at + self.alone[number])
            elif self.on_server[number]:
                self._queue(number)
            elif self.pools and self.ways[number] >= 0:
                self.begin[number] = at
                latency = float(self.now.roads.latency[client])
                heapq.heappush(self.heap, (at + latency, client, number, ENTERS))
            elif self.traced and self.ways[number] >= 0:
                self._finish(number, at, self._carried(number, client, at))
            else:
                self._finish(number, at, at + self.alone[number])
        return Times(
            np.array(self.ready),
            np.array(self.begin),
            np.array(self.end),
            np.array(self.cause, dtype=np.int64),
            self._last(),
        )

    def _last(self) -> int:
        averages = np.flatnonzero(self.graph.are("average"))
        return int(averages[0]) if len(averages) else int(np.argmax([*self.end, 0.0]))

    def _carried(self, number: int, client: int, at: float) -> float:
        """Return when a road whose rate changes has carried a task's bits."""
        begin = self.now.begin + at + float(self.now.roads.latency[client])
        bits = 8.0 * float(self.graph.amounts[number])
        return self.traced[self.ways[number]][client].end(begin, bits) - self.now.begin

    def _finish(self, number: int, begin: float, end: float) -> None:
        """Note when a task was done, and let those begin that waited for it alone."""
        self.begin[number], self.end[number] = begin, end
        missing, ready = self.missing, self.ready
        for other in self.followers[self.bounds[number] : self.bounds[number + 1]]:
            if end > ready[other] or self.cause[other] < 0:
                ready[other], self.cause[other] = end, number
            missing[other] -= 1
            if not missing[other]:
                heapq.heappush(self.heap, (ready[other], self.clients[other], other, READY))

    def _queue(self, number: int) -> None:
        """Let the server take a task, or keep it until its turn."""
        if not self.now.in_order:
            self._serve(number)
            return
        self.early.add(number)
        while self.order and self.order[-1] in self.early:
            self._serve(self.order.pop())

    def _serve(self, number: int) -> None:
        """Do a task on the core that is free first."""
        free, last = heapq.heappop(self.free)
        if free > self.ready[number]:
            self.cause[number] = last
        begin = max(free, self.ready[number])
        end = begin + self.alone[number]
        heapq.heappush(self.free, (end, number))
        self._finish(number, begin, end)

    def _enter(self, at: float, number: int) -> None:
        way, client = self.ways[number], self.clients[number]
        road = (self.now.roads.up, self.now.roads.down)[way][client]
        self.pools[way].join(at, number, 8.0 * float(self.graph.amounts[number]), float(road))
        self._foresee(way)

    def _leave(self, at: float, way: int, state: int) -> None:
        if state == self.pools[way].state:  # else somebody came or went, and it is foreseen anew
            for number in self.pools[way].leave(at):
                self._finish(number, self.begin[number], at)
            self._foresee(way)

    def _foresee(self, way: int) -> None:
        pool = self.pools[way]
        if (at := pool.next_end()) is not None:
            heapq.heappush(self.heap, (at, ~way, pool.state, LEAVES))
