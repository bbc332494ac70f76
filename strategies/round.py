"""One round in progress, and what a strategy knows beside messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fl_split.codecs import Codec
from fl_split.cut import Head, Tail
from fl_split.flat import Flat
from fl_split.flops import head_step, whole_step
from fl_split.optimizers import Optimizer, moments
from fl_split.seeds import generator
from fl_split.step import Arrival, Place
from strategies import messages
from strategies.crew import Crew
from strategies.downlink import Downlink
from strategies.mailbox import PUSH_AT, Mailbox, Traffic
from strategies.participants import NoClientsLeft
from strategies.tail import Served, TrainedTail, total

MOST_GROUPS, LARGEST_GROUP, LEAST_TOKENS = 8, 16, 2048
"""A joint step runs in groups of clients: enough groups for several cores, none so large that it
starts late, unless it takes more clients to be worth a job and a message to each worker."""


@dataclass(frozen=True)
class Progress:
    """What a run that goes on must know beside weights: rounds done, the tail's moments."""

    rounds: int = 0
    moments: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """What a strategy needs beside messages.

    Attributes
    ----------
    clients : int
        Number of virtual clients; the strategy waits until so many nodes are there.
    fraction : float
        Share of the clients sampled per round, in (0, 1].
    head, tail : Flat
        Where the global weights are trained and evaluated.
    pooled_round : Callable
        Train `head` and `tail` on pooled data for one round (the centralised baseline):
        (round, sampled clients) to (loss, samples, steps).
    crew : Crew
        The server's threads.
    progress : Progress
        Where to go on; by default from the start.
    on_round : Callable
        Called after every round with its :class:`RoundReport`; true ends the run.
    """

    clients: int
    fraction: float
    seed: int
    codec: Codec
    downlink: Codec
    tail_optimizer: Optimizer
    head: Flat[Head]
    tail: Flat[Tail]
    pooled_round: Callable[[int, Sequence[int]], tuple[float, int, int]]
    crew: Crew = field(default_factory=Crew)
    progress: Progress = field(default_factory=Progress)
    on_round: Callable[[RoundReport], bool | None] = lambda report: None


@dataclass
class RoundReport:
    """What one round cost and gave: global weights, metrics, and traffic by partition id."""

    round: int
    arrays: ArrayRecord
    metrics: dict[str, float]
    train_loss: float
    traffic: dict[int, Traffic]
    progress: Progress
    client_flops: int
    server_flops: int


@dataclass
class Round:
    """One round in progress: who takes part, what they sent, what they ended with.

    `returned` names the weights that a client must end its round with; `losses` holds, by
    client and step, how much a loss counts and the loss.
    """

    number: int
    clients: list[int]
    samples: dict[int, int]
    mailbox: Mailbox
    training: Training
    tail: TrainedTail
    arrays: ArrayRecord
    returned: Sequence[str] = (messages.HEAD,)
    finals: dict[int, Message] = field(default_factory=dict)
    losses: dict[tuple[int, int], tuple[int, float]] = field(default_factory=dict)
    server_flops: int = 0
    _own_heads: dict[int, np.ndarray] | None = None

    def __post_init__(self) -> None:
        self.downlink = Downlink(self.training.downlink)

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
            content = messages.start_of_round(self.number, head)
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

    def serve_together(self, clients: Sequence[int], step: int) -> list[int]:
        """Take one step of the tail on the payloads of all `clients`, weights n_k / n.

        Returns those that had one; n sums over them. Groups of clients go through the tail
        as soon as they are complete, and get their cut gradients as soon as these are
        there: neither depends on the other groups. The tail's gradient adds up in order.
        """
        whole = sum(self.samples[client] for client in self.clients)
        gradients: dict[int, Tensor] = {}
        served: list[int] = []
        failed: set[int] = set()

        def then(number: int, result: Served) -> None:
            gradients[number] = result.gradient
            failed.update(result.failed)
            self._send(step, result)

        for number, payloads in enumerate(self._groups(clients)):
            weights = {client: self.samples[client] / whole for client in payloads}
            work = partial(self.tail.serve, payloads, weights, self.number, step)
            self.training.crew.submit(work, partial(then, number))
            served += payloads
        self.mailbox.settle()
        served = [client for client in served if client not in failed]
        if served:
            gradient = total([gradients[number] for number in sorted(gradients)])
            part = sum(self.samples[client] for client in served)
            self.tail.descend(gradient if part == whole else gradient * (whole / part))
        return served

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
            self.losses[client, step] = self.samples[client], served.losses[client]
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

    def own_heads(self) -> dict[int, np.ndarray]:
        """Ask all clients with samples for their private heads; not counted as traffic.

        Raises
        ------
        NoClientsLeft
            None of them has a head to show.
        """
        if self._own_heads is None:
            old = self.mailbox
            apart = Mailbox(old.grid, old.nodes, "0", old.timeout, old.crew)
            for client in (client for client, count in self.samples.items() if count):
                apart.send(client, messages.REPORT_HEAD, RecordDict())
            found = {}
            for client, reply in apart.arrivals():
                try:
                    found[client] = self._weights(reply, [messages.HEAD])[messages.HEAD]
                except (KeyError, TypeError, ValueError) as error:
                    self.mailbox.drop(client, f"sent {error}")
            if not found:
                raise NoClientsLeft(f"round {self.number}: no client has a head to evaluate")
            self._own_heads = dict(sorted(found.items()))
        return self._own_heads

    def order(self, policy: str) -> list[int]:
        """Clients of the round in the order of `policy`: cyclic, reverse or random."""
        if policy == "random":
            draw = generator(self.training.seed, "order", self.number)
            return [self.clients[i] for i in torch.randperm(len(self.clients), generator=draw)]
        return self.clients[::-1] if policy == "reverse" else self.clients

    def report(self, arrays: ArrayRecord, metrics: MetricRecord) -> RoundReport:
        """Sum the round up, with the global weights after it and what evaluation gave."""
        losses = [loss for _, loss in sorted(self.losses.items())]  # not in order of arrival
        whole = sum(count for count, _ in losses)
        loss = sum(count * value for count, value in losses) / whole if whole else math.nan
        values = {
            key: float(value) for key, value in metrics.items() if not isinstance(value, list)
        }
        progress = Progress(self.number, moments(self.tail.optimizer, self.tail.flat.vector))
        traffic, client_flops = self.mailbox.traffic, self._flops_per_sample()
        samples = sum(sent.samples for client, sent in traffic.items() if client >= 0)
        return RoundReport(
            round=self.number,
            arrays=arrays,
            metrics=values,
            train_loss=loss,
            traffic=traffic,
            progress=progress,
            client_flops=client_flops * samples,
            server_flops=self.server_flops,
        )

    def _flops_per_sample(self) -> int:
        """Operations of a client, which for FedAvg holds the tail too."""
        head, tail = self.training.head.module, self.training.tail.module
        return whole_step(head, tail, 1) if messages.TAIL in self.returned else head_step(head, 1)

    def _sort(self, client: int, reply: Message) -> Arrival | None:
        """Tell a payload from a final reply; drop the client if it is neither."""
        try:
            if messages.PAYLOAD in reply.content:
                return self.tail.arrive(
                    messages.unwrap(reply.content.array_records[messages.PAYLOAD])
                )
            self._weights(reply, self.returned)
            if messages.metric(reply, messages.NUM_EXAMPLES) != self.samples[client]:
                raise ValueError("another number of samples than it said at the start")
            self.finals[client] = reply
        except (KeyError, TypeError, ValueError) as error:
            self.mailbox.drop(client, f"sent {error}")
        return None

    def _weights(self, reply: Message, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Read weight vectors; ValueError or KeyError if one is missing or cannot be used."""
        found = {name: messages.numbers(messages.vector(reply, name)) for name in names}
        for name, vector in found.items():
            if vector.shape != (expected := tuple(self.arrays[name].shape)):
                raise ValueError(f"{name} of shape {vector.shape}, expected {expected}")
            if not np.isfinite(vector).all():
                raise ValueError(f"a {name} that is not finite")
        return found


def _group_size(clients: int) -> int:
    """Return how many of `clients` are served together, at least: the same on any machine."""
    return min(LARGEST_GROUP, math.ceil(clients / MOST_GROUPS))
