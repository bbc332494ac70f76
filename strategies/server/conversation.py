"""What server and clients say to each other in one round: sent, checked, counted, recorded.

All goes through a :class:`~fl_split.exchange.link.Link`; who sends nonsense is dropped for a round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fl_split.exchange.account import Traffic, weights_bytes
from fl_split.exchange.link import UNREADABLE, Arrival
from fl_split.exchange.local_loss import work_of
from fl_split.exchange.protocol import Exchange, Flops
from fl_split.exchange.records import (
    BEGIN,
    END,
    GO_ON,
    HEAD,
    HELD,
    LOSS,
    PAYLOAD,
    ROUND,
    SAMPLES,
    SKIP,
    SMASHED_BYTES,
    Record,
    Weights,
    check_weights,
)
from fl_split.exchange.served import HalfServed, Served
from fl_split.models.cut import Head
from fl_split.recipe.schedules import Moment
from fl_split.seeds import StepId
from strategies.server.aggregation import Update
from strategies.server.assignment import Assignment
from strategies.server.mailbox import Mailbox, Waiting
from strategies.server.tasks import SERVER, TaskGraph
from strategies.server.training import Training


@dataclass(kw_only=True)
class Conversation:
    """One round as clients and server hear it.

    Attributes
    ----------
    number, assignments, samples : int, dict, dict
        From 1; what each client is asked to do, in order; samples n_k of all clients of the run.
    weights, labels : dict[str, Weights], dict
        The global weights at the start of the round; samples of each class that clients hold, for
        strategies that need them.
    steps, batch_samples : dict[int, int]
        By client: steps that were served, and samples of the last payload.
    losses, ends, beside : dict
        Losses by client and step; what clients ended with; what each gets beside and keeps.
    """

    number: int
    assignments: Mapping[int, Assignment]
    samples: Mapping[int, int]
    weights: Mapping[str, Weights]
    exchange: Exchange
    training: Training
    mailbox: Mailbox
    labels: Mapping[int, Sequence[float]] = field(default_factory=dict)
    ends: dict[int, Update] = field(default_factory=dict)
    beside: dict[int, dict[str, Weights]] = field(default_factory=dict)
    losses: dict[int, dict[int, float]] = field(default_factory=dict)
    batch_samples: dict[int, int] = field(default_factory=dict)
    tasks: TaskGraph = field(default_factory=TaskGraph)
    server_flops: int = 0
    client_flops: int = 0

    def __post_init__(self) -> None:
        self.clients, self.steps = list(self.assignments), dict.fromkeys(self.assignments, 0)
        self.link, self.stand_ins = self.training.link.renewed(), self.training.stand_ins
        self._flops: dict[Head, Flops] = {}
        self._work: dict[int, Flops] = {}
        self._expected: dict[int, Mapping[str, Weights]] = {}
        self._waiting: dict[int, Waiting] = {}
        self._forwarded: dict[int, int] = {}

    def at(self, client: int) -> StepId:
        """Return the present step of a client."""
        return StepId(self.training.seed, self.number, client, self.steps.get(client, 0))

    def moment_of(self, client: int) -> Moment:
        """Return where in its own round a client's next payload is."""
        steps = self.training.num_steps(self.samples[client], self.assignments[client])
        return Moment(self.number, self.steps[client], 1, -(-steps // self.exchange.every))

    def flops_of(self, client: int) -> Flops:
        """Operations of a client on one image."""
        head, tail = self.training.halves
        own = self.stand_ins.head(client, head)
        if own not in self._flops:
            self._flops[own] = self.exchange.flops_of_round(self.number, own, tail)
        return self._flops[own]

    @property
    def traffic(self) -> dict[int, Traffic]:
        """What has crossed so far, by client."""
        return self.mailbox.account.traffic

    def begin(self, clients: Sequence[int], **weights: Weights) -> list[int]:
        """Start the round of `clients` with `weights`; without any they keep their own.

        A client ends its round with weights of the names that it was sent. Clients start in
        the groups in which they are served together, as one where heads are stacked. Returns
        `clients`.
        """
        size = self.training.group_size(len(clients))
        for number, client in enumerate(clients, start=1):
            if self.vanishes(self.at(client)):
                continue
            asked = {ROUND: self.number, **self.assignments[client].numbers()}
            own = self.stand_ins.begin(client, weights, self.assignments[client].rate)
            more = self.beside.get(client, {})
            action = BEGIN if weights or HEAD in more else GO_ON
            record = Record(action, weights={**own, **more}, numbers=asked)
            self._expected[client], sent = own, [*weights.values(), *more.values()]
            self.tasks.sync_down(client, weights_bytes(record), sent)
            self.mailbox.send(client, record)
            if number % size == 0:
                self.mailbox.push()
        return list(clients)

    def answer(self, served: Served, clients: Sequence[int], owner: int = SERVER) -> None:
        """Count what the tail did for `clients`, and send cut gradients.

        Each client is then at its next step. `owner` is the client whose tail it is, or SERVER.
        """
        self.note(served, clients, owner)
        self.send_cuts(served)

    def note(self, served: Served, clients: Sequence[int], owner: int = SERVER) -> None:
        """Count what the tail did for `clients`; drop those whose loss was not finite."""
        forwarded = sum(self._forwarded.pop(client, 0) for client in clients)
        self.server_flops += served.flops
        if served.losses or served.failed:  # else nobody has answered
            left = max(0, served.flops - forwarded)
            self.tasks.serve("serve", owner, clients, self.steps[clients[0]], left)
        for client in served.failed:
            self.mailbox.drop(client, "sent what gives a loss that is not finite")

    def send_cuts(self, served: Served) -> None:
        """Send cut gradients."""
        for client, cut in served.cuts.items():
            if self.vanishes((at := self.at(client)).next()):
                self.client_flops -= self._work[client].backward
                continue
            cut, flops = self.stand_ins.backward(client, cut)
            self._stood_in(flops, self.tasks.stand_back, at)
            try:
                record = self.exchange.answer(self.link, cut, at)
            except ValueError as error:
                self.mailbox.drop(client, f"got a cut gradient with {error}")
                continue
            self.losses.setdefault(client, {})[at.step] = served.losses[client]
            crossing = self.link.over(record.sent(), at, "down", self.mailbox.account)
            numbers, work = cut.values * self.link.packs_down, self._work[client].backward
            is_lost, size = crossing.data is None, crossing.size
            self.tasks.gradient(client, at.step, numbers, size, work, is_lost)
            if is_lost:
                self._skip(client, "down")
            else:
                self.stand_ins.learn(client, self.moment_of(client))
                self.steps[client] += 1
                self.mailbox.send(client, replace(record, payload=crossing.data))

    def vanishes(self, at: StepId) -> bool:
        """Tell whether a client is gone before its step; drop it if so."""
        if is_gone := self.training.attendance.vanishes(at):
            self.mailbox.drop(at.client, "dropped out")
        return is_gone

    def half_serve(
        self, half: HalfServed, then: Callable[[Served], None], owner: int = SERVER
    ) -> None:
        """Send outputs; when all clients have answered, or are gone, `then` gets the rest."""
        if half.outputs:
            step = self.steps[next(iter(half.outputs))]
            self.tasks.serve("middle", owner, [*half.outputs], step, sum(half.flops.values()))
        self._forwarded |= half.flops
        for client in half.failed:
            self.mailbox.drop(client, "sent what gives an output that is not finite")
        waiting, head = Waiting(half, then, set(half.outputs)), self.training.head.module
        for client, output in half.outputs.items():
            at = self.at(client)
            record = Record(half.action, self.link.across(output, at, "output"), step=at.step)
            way = self.link.over(record.sent(), at, "output", self.mailbox.account)
            self.client_flops += (flops := self.exchange.answer_flops(head, output))
            self.tasks.follow("output down", client, at.step, way.size, *self.tasks.served(client))
            self.tasks.follow("end", client, at.step, flops)
            self._waiting[client] = waiting
            self.mailbox.send(client, replace(record, payload=way.data))
        if not half.outputs:
            self._resume(waiting)

    def sort(self, client: int, record: Record) -> Arrival | None:
        """Return a payload that has come; None for all else, and drop what is nothing."""
        try:
            if client in self._waiting:
                self._answered(client, record)
            elif record.action == PAYLOAD:
                return self._arrive(client, record)
            elif record.action == END:
                self._end(client, record)
            else:
                raise ValueError(f"a {record.action!r} that nobody asked for")
        except UNREADABLE as error:
            self.mailbox.drop(client, f"sent {error}")
        return None

    def _arrive(self, client: int, record: Record) -> Arrival | None:
        """Return a payload that has come; None if the channel has lost it."""
        size, data, at = int(record.number(SAMPLES)), record.sent(), self.at(client)
        if record.step != at.step:
            raise ValueError(f"a payload of step {record.step}, expected step {at.step}")
        if not 0 < size <= self.exchange.every * self.samples[client]:
            raise ValueError(f"a batch of {size} samples, holding {self.samples[client]}")
        self.batch_samples[client] = size
        work = self._work[client] = work_of(record, self.flops_of(client), size)
        self.client_flops += work.total
        crossing = self.link.over(data, at, "up", self.mailbox.account)
        numbers = int(record.number(SMASHED_BYTES)) // 4 * self.link.encodes
        is_whole = self.exchange.is_one_way and not self.exchange.only_sends(self.number)
        self.tasks.payload(client, at.step, work.forward, numbers, crossing.size, is_whole)
        receiver = self.stand_ins.receiver(client, self.training.tail.module)
        arrival = self.link.received(crossing, at, receiver)
        if arrival is None:
            self._skip(client, "up")
            return None
        if self.link.encodes:
            self.tasks.decode(client, at.step, arrival.values)
        arrival, flops = self.stand_ins.forward(client, arrival, at)
        self._stood_in(flops, self.tasks.stand_in, at)
        return arrival

    def _stood_in(self, flops: int, task: Callable[[int, int, int], None], at: StepId) -> None:
        """Count what the server did in the place of a client, if anything."""
        if flops:
            self.server_flops += flops
            task(at.client, at.step, flops)

    def _skip(self, client: int, way: str) -> None:
        """Let a client go on with what it can learn alone: a payload or cut gradient is lost."""
        self.mailbox.account.count_loss(client, way)
        step, work = self.steps[client], self._work[client].backward
        if way == "up" and not self.exchange.is_one_way:  # else it went with the cut gradient
            self.tasks.follow("down", client, step, 0)
        alone = self.exchange.flops_alone(self.number, self.training.head.module)
        if done := min(work, alone * self.batch_samples[client]):  # by its exits
            self.tasks.follow("backward", client, step, done)
        self.client_flops -= work - done
        self.mailbox.send(client, Record(SKIP, step=step))
        self.steps[client] += 1

    def _end(self, client: int, record: Record) -> None:
        check_weights(record.weights, self._expected[client])
        if record.number(HELD) != (held := self.samples[client]):
            raise ValueError("another number of samples than it said at the start")
        if self.exchange.is_silent(self.number):
            self.losses[client] = {0: record.number(LOSS)}
        elif record.number(SAMPLES) and not self.exchange.is_one_way:
            raise ValueError("samples with the end of a round whose steps were all served")
        if record.number(SAMPLES):
            work = work_of(record, self.flops_of(client), int(record.number(SAMPLES)))
            self.client_flops += work.total
            self.tasks.follow("train", client, self.steps[client], work.total)
        weights = self.stand_ins.end(client, record.weights, self.moment_of(client))
        self.tasks.sync_up(client, self.steps[client], weights_bytes(record), weights.values())
        self.ends[client] = Update(client, held, weights, record.numbers)

    def _give_up_lost(self) -> bool:
        """Go on without clients that were dropped before they answered; tell if there were any."""
        lost = [client for client in self._waiting if self.mailbox.dropped(client)]
        for client in lost:
            self._answered(client, None)
        return bool(lost)

    def _answered(self, client: int, record: Record | None) -> None:
        """Note what a client answered to its output; None if it was dropped."""
        waiting, at = self._waiting.pop(client), self.at(client)
        waiting.missing.discard(client)
        try:
            if record is not None:
                data = record.payload or b""
                crossing = self.link.over(data, at, "way back", self.mailbox.account)
                record = replace(record, payload=record.payload and crossing.data)
                waiting.answers[client] = waiting.half.read(client, self.link, record)
                self.tasks.follow("output gradient up", client, at.step, crossing.size)
        finally:
            if not waiting.missing:
                self._resume(waiting)

    def _resume(self, waiting: Waiting) -> None:
        self.training.threads.submit(partial(waiting.half.resume, waiting.answers), waiting.then)
