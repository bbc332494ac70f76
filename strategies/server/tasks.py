"""The task graph of a round: what was done, and what each piece of work waited for.

The primitives of a round record it; no strategy does. Amounts are bytes for what crosses and
floating-point operations for what computes, so that time can be computed from the graph and a
model of devices and networks, now or later.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

Kind = Literal[
    "sync down",  # weights, server to client
    "forward",  # head, client
    "encode",  # smashed data, client
    "up",  # payload, client to server
    "decode",  # payload, server
    "middle",  # tail of a U-shape as far as its output, server
    "output down",  # server to client
    "end",  # end of a U-shape and its gradient, client
    "output gradient up",  # client to server
    "serve",  # tail, forward and backward; in a U-shape its backward; server
    "step",  # of the tail's optimiser, after all gradients of a joint step, or on what came; server
    "pack",  # cut gradient, server
    "down",  # cut gradient, server to client
    "unpack",  # cut gradient, client
    "backward",  # head, client
    "train",  # steps that wait for nobody, client; or on pooled or kept data, server
    "sync up",  # weights, client to server
    "wait",  # for clients that are late, or until one is there; server
    "average",  # of what clients have sent, which ends the round; server
    "stand in",  # stages that the server trains for a client, forward or backward; server
]

BYTES: set[Kind] = {"sync down", "up", "output down", "output gradient up", "down", "sync up"}
"""Kinds whose amount is bytes."""

VALUES: set[Kind] = {"encode", "decode", "pack", "unpack"}
"""Kinds whose amount is numbers: of smashed data to encode, of values that came to decode, of a
cut gradient. The identity codec has none of these tasks. Of "wait" it is microseconds, of all
others operations."""

SERVER = -1
"""The server, where a task has no client."""


class Task(NamedTuple):
    """A piece of work.

    `client` is SERVER for the server's own; `after` are the numbers of the tasks that had to
    end before it could begin.
    """

    kind: Kind
    client: int
    step: int
    amount: int
    after: tuple[int, ...]


def in_order(tasks: Sequence[Task]) -> list[Task]:
    """Return the same graph, numbered as :func:`order_of` says."""
    return renumbered(tasks, order_of(tasks))


def renumbered(tasks: Sequence[Task], order: Sequence[int]) -> list[Task]:
    """Return the same graph, its tasks in `order`."""
    number = dict(zip(order, range(len(tasks)), strict=True))
    return [
        tasks[old]._replace(after=tuple(sorted(map(number.__getitem__, tasks[old].after))))
        for old in order
    ]


def order_of(tasks: Sequence[Task]) -> list[int]:
    """Return the numbers of tasks by depth and then by client.

    Tasks are recorded as messages arrive; their order depends on no arrival. Every task still
    waits for earlier ones only.
    """
    keys: list[tuple[int, int, int]] = []  # depth, client or the first that is served, kind
    places = {kind: place for place, kind in enumerate(get_args(Kind))}
    for task in tasks:
        depth = max((keys[number][0] for number in task.after), default=-1) + 1
        client = task.client
        if client == SERVER:
            served = [number for number in task.after if tasks[number].kind != "step"]
            client = min((keys[number][1] for number in served or task.after), default=SERVER)
        keys.append((depth, client, places[task.kind]))
    return sorted(range(len(tasks)), key=keys.__getitem__)


@dataclass
class TaskGraph:
    """The tasks of one round, numbered from 0 in the order in which they were recorded.

    A client's tasks follow each other. Tasks of the server wait for payloads, and for the
    step of the tail that came before.
    """

    tasks: list[Task] = field(default_factory=list)
    _last: dict[int, int] = field(default_factory=dict)
    _tails: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _waits: tuple[int, ...] = ()
    _served: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _decoded: dict[int, int] = field(default_factory=dict)
    _unstepped: dict[int, list[int]] = field(default_factory=dict)
    _origins: dict[Hashable, int] = field(default_factory=dict)

    def add(self, kind: Kind, client: int, step: int, amount: int, *after: int) -> int:
        """Record a task that waits for those numbered `after`; return its number."""
        self.tasks.append(Task(kind, client, step, amount, after))
        return len(self.tasks) - 1

    def follow(self, kind: Kind, client: int, step: int, amount: int, *after: int) -> int:
        """Record a task of a client, after the client's last one and those numbered `after`."""
        last = self._last.get(client)
        before = (*after, *self._waits) if last is None else (last, *after)
        self._last[client] = self.add(kind, client, step, amount, *before)
        return self._last[client]

    def make(self, weights: Hashable, amount: int) -> None:
        """Record that the server makes weights of what it keeps; who is sent them waits."""
        self._origins[weights] = self.add("train", SERVER, 0, amount)

    def sync_down(self, client: int, size: int, weights: Iterable[Hashable]) -> None:
        """Record that a client is sent weights, after whatever in this round has made them."""
        origins = [self._origins[one] for one in weights if one in self._origins]
        self.follow("sync down", client, 0, size, *origins)

    def sync_up(self, client: int, step: int, size: int, weights: Iterable[Hashable]) -> None:
        """Record that a client sends its weights."""
        self._origins |= dict.fromkeys(weights, self.follow("sync up", client, step, size))

    def decode(self, client: int, step: int, amount: int) -> None:
        """Record that the server decodes what came from a client; its tail waits for that.

        What came before of the same client, and has not been served, is decoded before.
        """
        before = [self._last[client]]
        if client in self._decoded:
            before.append(self._decoded[client])
        self._decoded[client] = self.add("decode", SERVER, step, amount, *before)

    def stand_in(self, client: int, step: int, amount: int) -> None:
        """Record that the server runs what came from a client as far as the tail begins."""
        before = self._decoded.get(client, self._last[client])
        self._decoded[client] = self.add("stand in", SERVER, step, amount, before)

    def stand_back(self, client: int, step: int, amount: int) -> None:
        """Record that the server takes the tail's gradient back to where a client is cut."""
        number = self.add("stand in", SERVER, step, amount, *self._served[client])
        self._served[client] = (number,)

    def payload(
        self,
        client: int,
        step: int,
        work: int,
        numbers: int,
        size: int,
        is_whole: bool = False,
    ) -> None:
        """Record the way of a payload to the server: operations, numbers to encode, bytes.

        The operations are a forward pass, or whole steps of training.
        """
        self.follow("train" if is_whole else "forward", client, step, work)
        if numbers:
            self.follow("encode", client, step, numbers)
        self.follow("up", client, step, size)

    def gradient(
        self, client: int, step: int, numbers: int, size: int, work: int, is_lost: bool = False
    ) -> None:
        """Record the way of a cut gradient to the client: numbers to pack, bytes, operations.

        With one that is lost the client does nothing.
        """
        made = self._served[client]
        if numbers:
            made = (self.add("pack", SERVER, step, numbers, *made),)
        self.follow("down", client, step, size, *made)
        if is_lost:
            return
        if numbers:
            self.follow("unpack", client, step, numbers)
        self.follow("backward", client, step, work)

    def serve(self, kind: Kind, owner: int, clients: Sequence[int], step: int, amount: int) -> None:
        """Record work of a tail for `clients`, after their last tasks and the tail's last step.

        `owner` is the client whose tail it is, or SERVER for the shared one.
        """
        ups = [self._decoded.pop(client, self._last[client]) for client in clients]
        number = self.add(kind, SERVER, step, amount, *ups, *self._tails.get(owner, ()))
        self._served |= dict.fromkeys(clients, (number,))
        self._unstepped.setdefault(owner, []).append(number)

    def served(self, client: int) -> tuple[int, ...]:
        """Return the numbers of the tasks that made what a client is sent."""
        return self._served[client]

    def mix(self, clients: Sequence[int]) -> None:
        """Record that what each of `clients` is sent was made of what all were served."""
        numbers = {number for client in clients for number in self._served[client]}
        self._served |= dict.fromkeys(clients, tuple(sorted(numbers)))

    def step(self, owner: int) -> None:
        """Record that a tail has stepped on all that it has done since its last step."""
        self._tails[owner] = (self.add("step", SERVER, 0, 0, *self._unstepped.pop(owner, [])),)

    def train(self, owner: int, clients: Sequence[int], amount: int) -> None:
        """Record that a tail steps on what `clients` sent, and is yet to serve them."""
        ups = [self._decoded.get(client, self._last[client]) for client in clients]
        before = (*self._tails.get(owner, ()), *self._unstepped.pop(owner, []))
        self._tails[owner] = (self.add("step", SERVER, 0, amount, *ups, *before),)

    def last(self, client: int) -> int:
        """Return the number of the last task of a client."""
        return self._last[client]

    def wait(self, microseconds: int, *after: int) -> None:
        """Record that the server waits; what it does or begins from now on comes later."""
        waits = self.add("wait", SERVER, 0, microseconds, *after)
        self._waits = (*self._waits, waits)
        self._tails[SERVER] = (*self._tails.get(SERVER, ()), waits)

    def average(self, clients: Iterable[int]) -> None:
        """Record that the round ends: with what `clients` sent, their tails, and the shared one."""
        owners = [*clients, SERVER]
        tails = {task for owner in owners for task in self._tails.get(owner, ())}
        ends = {self._last[client] for client in owners if client != SERVER}
        before = sorted({*ends, *tails, *self._waits})
        self.add("average", SERVER, 0, 0, *(before or range(len(self.tasks))))
