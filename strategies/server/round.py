"""One round in progress, and what a strategy knows beside messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fl_split.exchange.split import Arrival, Place
from fl_split.metrics import drift
from fl_split.models.flops import head_step, whole_step
from fl_split.optimizers import moments
from fl_split.payload import Payload
from fl_split.seeds import generator
from strategies.server import messages
from strategies.server.downlink import Downlink
from strategies.server.mailbox import PUSH_AT, Mailbox
from strategies.server.private_models import mean, shown
from strategies.server.tail import Served, TrainedTail, total
from strategies.server.training import Progress, RoundReport, Training, train_loss

MOST_GROUPS, LARGEST_GROUP, LEAST_TOKENS = 8, 16, 2048
"""A joint step runs in groups of clients: enough groups for several cores, none so large that it
starts late, unless it takes more clients to be worth a job and a message to each worker."""


Mix = Callable[[dict[int, Payload]], dict[int, Payload]]
"""What becomes of the cut gradients of an exchange, by client, before they are sent."""

Job = tuple[list[int], Callable[[], Served]]
"""A group of clients, and what serves them together."""


@dataclass
class Round:
    """One round in progress: who takes part, what they sent, what they ended with.

    `returned` names the weights that a client must end its round with, `is_local` tells
    whether clients train the whole model; `losses` are by client and step, or by client
    alone where it tells only the mean over its steps. `end_flops` are those of clients'
    ends, in a U-shape. `shares` are the clients, each with its share of the batch size.
    With `merges` a joint step counts clients by the samples of their batch instead of by
    all they hold.
    """

    number: int
    shares: Mapping[int, float]
    samples: dict[int, int]
    mailbox: Mailbox
    training: Training
    tail: TrainedTail
    arrays: ArrayRecord
    returned: Sequence[str] = (messages.HEAD,)
    is_local: bool = False
    merges: bool = False
    finals: dict[int, Message] = field(default_factory=dict)
    losses: dict[tuple[int, int], float] = field(default_factory=dict)
    server_flops: int = 0
    end_flops: int = 0
    _batches: dict[int, int] = field(default_factory=dict)
    _own: dict[int, ArrayRecord] | None = None
    _drift: float | None = None

    def __post_init__(self) -> None:
        self.downlink = Downlink(self.training.downlink)
        self.clients = list(self.shares)

    @property
    def head(self) -> Array:
        """The global head at the start of the round."""
        return self.arrays[messages.HEAD]

    def begin(self, clients: Sequence[int], head: Array | None) -> None:
        """Start the round of `clients`; `head` None lets them keep their own.

        They start in the groups in which they will be served together: a worker may run
        the heads of those that come together as one.
        """
        size = _group_size(len(clients))
        for number, client in enumerate(clients, start=1):
            content = messages.start_of_round(self.number, head, self.shares[client])
            self.mailbox.send(client, messages.STEP, content)
            if number % size == 0:
                self.mailbox.push()

    def payload(self, client: int) -> Arrival | None:
        """Wait for the next payload of `client`; None when it has ended or was dropped."""
        if client in self.finals or self.mailbox.dropped(client):
            return None
        reply = self.mailbox.receive(client)
        return None if reply is None else self._sort(client, reply)

    def arrivals(self) -> Iterator[dict[int, Arrival]]:
        """Yield payloads as they come, a few at once, until every client has ended."""
        for batch in self.mailbox.batches():
            sorted_ = ((client, self._sort(client, reply)) for client, reply in batch.items())
            found = [(client, payload) for client, payload in sorted_ if payload is not None]
            for start in range(0, len(found), PUSH_AT):
                yield dict(found[start : start + PUSH_AT])

    def serve(self, client: int, payload: Arrival, step: int) -> None:
        """Take one step of the tail on one payload and send the cut gradient."""
        self._send(step, self.tail.step(client, payload, self.number, step))

    def serve_apart(
        self,
        tails: Mapping[int, TrainedTail],
        payloads: Mapping[int, Arrival],
        steps: Mapping[int, int],
    ) -> None:
        """Do the same with each client's own tail, beside whatever else is going on."""
        jobs = [(steps[client], client, payload) for client, payload in payloads.items()]

        def work() -> list[Served]:
            return [tails[c].step(c, payload, self.number, step) for step, c, payload in jobs]

        def then(results: list[Served]) -> None:
            for (step, _, _), served in zip(jobs, results, strict=True):
                self._send(step, served)

        self.training.crew.submit(work, then)

    def serve_together(
        self, clients: Sequence[int], step: int, mix: Mix | None = None
    ) -> list[int]:
        """Take one step of the tail on the payloads of all `clients`, weights n_k / n.

        n_k are all samples that client k holds, or (`merges`) those of its batch.

        Returns those that had one; n sums over them. Groups of clients go through the tail
        as soon as they are complete, and get their cut gradients as soon as these are
        there: neither depends on the other groups. The tail's gradient adds up in order.
        With `mix` cut gradients wait for each other, and what it makes of them is sent.
        """
        gradients: dict[int, Tensor] = {}
        served: list[int] = []
        failed: set[int] = set()
        held: list[Served] = []

        def then(number: int, result: Served) -> None:
            gradients[number] = result.gradient
            failed.update(result.failed)
            if mix:
                held.append(result)
            else:
                self._send(step, result)

        for number, (group, work) in enumerate(self._jobs(clients, step)):
            self.training.crew.submit(work, partial(then, number))
            served += group
        self.mailbox.settle()
        if mix:
            mixed = mix({client: cut for result in held for client, cut in result.cuts.items()})
            for result in held:
                self._send(step, replace(result, cuts={c: mixed[c] for c in result.cuts}))
            self.mailbox.push()
        served = [client for client in served if client not in failed]
        if served:
            gradient = total([gradients[number] for number in sorted(gradients)])
            whole, part = self._whole(), sum(self._count(client) for client in served)
            self.tail.descend(gradient if part == whole else gradient * (whole / part))
        return served

    def _jobs(self, clients: Sequence[int], step: int) -> Iterator[Job]:
        """Yield groups of clients as their payloads come, and what serves each."""
        for payloads in self._groups(clients):
            yield (
                list(payloads),
                partial(self.tail.serve, payloads, self._weights_of(payloads), self.number, step),
            )

    def _count(self, client: int) -> int:
        """Return n_k."""
        return self._batches[client] if self.merges else self.samples[client]

    def _whole(self) -> int:
        """Return n, known before all clients have come.

        Of merged batches it is that of the first client; a gradient is put right in the end.
        """
        if self.merges:
            return next(self._batches[client] for client in self.clients if client in self._batches)
        return sum(self.samples[client] for client in self.clients)

    def _weights_of(self, clients: Iterable[int]) -> dict[int, float]:
        """Return n_k / n."""
        whole = self._whole()
        return {client: self._count(client) / whole for client in clients}

    def _groups(self, clients: Sequence[int]) -> Iterator[dict[int, Arrival]]:
        """Yield payloads in groups as they come, in order; the cuts never depend on the machine."""
        size = _group_size(len(clients))
        group: dict[int, Arrival] = {}
        for client in clients:
            payload = self.payload(client)
            if payload is not None:
                group[client] = payload
            tokens = sum(arrival.num_tokens for arrival in group.values())
            if len(group) >= size and tokens >= LEAST_TOKENS:
                yield group
                group = {}
        if group:
            yield group

    def _send(self, step: int, served: Served) -> None:
        self.server_flops += served.flops
        for client in served.failed:
            self.mailbox.drop(client, "sent what gives a loss that is not finite")
        for client, cut in served.cuts.items():
            place = Place(self.training.seed, self.number, client, step)
            try:
                packed = self.downlink.pack(cut, place)
            except ValueError as error:
                self.mailbox.drop(client, f"got a cut gradient with {error}")
                continue
            self.losses[client, step] = served.losses[client]
            content = RecordDict({messages.GRADIENT: messages.wrap(packed)})
            self.mailbox.send(client, messages.STEP, content)

    def finish(self) -> None:
        """Wait until every client has ended, where none has payloads to send."""
        for payloads in self.arrivals():
            for client in payloads:
                self.mailbox.drop(client, "sent a payload that nobody asked for")

    def replies(self) -> list[Message]:
        """Final replies by partition id, so that sums do not depend on arrival."""
        return [self.finals[client] for client in sorted(self.finals)]

    def weighted(self, weight: Callable[[int], int]) -> list[Message]:
        """Final replies whose clients count as `weight` says, whatever they hold."""
        for client, reply in self.finals.items():
            metrics = reply.content.metric_records[messages.METRICS]
            metrics[messages.NUM_EXAMPLES] = weight(client)
        return self.replies()

    def own_weights(self) -> dict[int, ArrayRecord]:
        """What clients keep, by client; asked for once."""
        if self._own is None:
            self._own = shown(self)
            self._note_drift([own for client, own in self._own.items() if client in self.clients])
        return self._own

    def mean_of_own(self) -> ArrayRecord:
        """Mean of what clients keep, weights n_k / n, only to be saved."""
        return mean(self.own_weights(), self.samples)

    def order(self, policy: str) -> list[int]:
        """Clients of the round in the order of `policy`: cyclic, reverse or random."""
        if policy == "random":
            draw = generator(self.training.seed, "order", self.number)
            return [self.clients[i] for i in torch.randperm(len(self.clients), generator=draw)]
        return self.clients[::-1] if policy == "reverse" else self.clients

    def report(self, arrays: ArrayRecord, metrics: MetricRecord) -> RoundReport:
        """Sum the round up, with the global weights after it and what evaluation gave."""
        dropped = self.mailbox.dropped
        losses = {key: loss for key, loss in self.losses.items() if not dropped(key[0])}
        values = {
            key: float(value) for key, value in metrics.items() if not isinstance(value, list)
        }
        progress = Progress(
            self.number,
            moments(self.tail.optimizer, self.tail.flat.vector),
            self.training.aggregator.state(),
        )
        lists = {key: value for key, value in metrics.items() if isinstance(value, list)}
        owners, shards = (lists.get(k, []) for k in (messages.SHARD_CLIENTS, messages.SHARDS))
        traffic, client_flops = self.mailbox.traffic, self._flops_per_sample()
        samples = sum(sent.samples for client, sent in traffic.items() if client >= 0)
        return RoundReport(
            round=self.number,
            arrays=arrays,
            metrics=values,
            train_loss=train_loss(losses, self.samples),
            traffic=traffic,
            progress=progress,
            client_flops=client_flops * samples + self.end_flops,
            server_flops=self.server_flops,
            class_accuracy=[float(number) for number in lists.get(messages.CLASSES, [])],
            shard_accuracy={int(k): float(v) for k, v in zip(owners, shards, strict=True)},
            drift=self._drift,
        )

    def note_drift(self, replies: Sequence[Message]) -> None:
        """Measure how far the heads in final replies are apart, while they are there."""
        records = (reply.content.get(messages.WEIGHTS) for reply in replies)
        self._note_drift([r for r in records if isinstance(r, ArrayRecord)])

    def _note_drift(self, records: Sequence[ArrayRecord]) -> None:
        heads = [messages.numbers(r[messages.HEAD]) for r in records if messages.HEAD in r]
        self._drift = drift(heads) if len(heads) > 1 else None

    def _flops_per_sample(self) -> int:
        """Operations of a client, which for FedAvg holds the tail too."""
        head, tail = self.training.head.module, self.training.tail.module
        return whole_step(head, tail, 1) if self.is_local else head_step(head, 1)

    def _sort(self, client: int, reply: Message) -> Arrival | None:
        """Tell a payload from a final reply; drop the client if it is neither."""
        try:
            if messages.PAYLOAD in reply.content:
                size = int(messages.metric(reply, messages.NUM_SAMPLES))
                if not 0 < size <= self.samples[client]:
                    raise ValueError(f"a batch of {size} samples, holding {self.samples[client]}")
                self._batches[client] = size
                return self.tail.arrive(
                    messages.unwrap(reply.content.array_records[messages.PAYLOAD])
                )
            messages.check_weights(reply, self.returned, self.arrays)
            if messages.metric(reply, messages.NUM_EXAMPLES) != self.samples[client]:
                raise ValueError("another number of samples than it said at the start")
            self.finals[client] = reply
        except (KeyError, TypeError, ValueError) as error:
            self.mailbox.drop(client, f"sent {error}")
        return None


def _group_size(clients: int) -> int:
    """Return how many of `clients` are served together, at least: the same on any machine."""
    return min(LARGEST_GROUP, math.ceil(clients / MOST_GROUPS))
