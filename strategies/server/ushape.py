"""Rounds of a U-shape: in every exchange the middle waits for the client's end.

Strategies do not know. Where they have a client served, the middle's output goes down, its
gradient comes up, and then the middle steps and the cut gradient goes down. Outputs and their
gradients are packed as cut gradients are, but without error feedback: samples change.

Meanwhile the middle's graphs are kept, as far as there is room; else its forward is repeated,
with the same weights and so the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from flwr.app import Message, RecordDict
from torch import Tensor

from fl_split.activations import activation_bytes, saved
from fl_split.exchange.split import Arrival, Place, check_finite, pack
from fl_split.exchange.ushape import Passage, retrace, traverse
from fl_split.models.flops import tail_step
from fl_split.payload import Payload
from strategies.server import messages
from strategies.server.round import Job, Round
from strategies.server.tail import Served, TrainedTail, total

GRAPH_BYTES = 2 * 2**30
"""Bytes of graphs that are kept while clients' ends compute."""


@dataclass(frozen=True)
class Back:
    """What came back from a client's end: its loss, and the gradient in its output."""

    loss: float
    gradient: Tensor


@dataclass(frozen=True)
class Crossing:
    """Payloads half-way: they ran through the middle in a round and step.

    `passages` have the graphs, `size` bytes of them; none if these were not kept. `failed`
    are clients whose output was not finite, left out of all else.
    """

    round: int
    step: int
    arrivals: Mapping[int, Arrival]
    passages: Sequence[tuple[list[int], Passage]]
    outputs: Mapping[int, Tensor]
    size: int
    failed: Sequence[int] = ()


def cross(
    middle: TrainedTail, arrivals: Mapping[int, Arrival], server_round: int, step: int
) -> Crossing:
    """Run payloads through the middle, in the batches of :meth:`TrainedTail.serve`."""
    passages, outputs, module = [], dict[int, Tensor](), middle.flat.module
    with saved() as sizes:
        for clients in middle.batches(arrivals):
            place = Place(middle.seed, server_round, clients[0], step)
            passage = traverse(module, [arrivals[k] for k in clients], place)
            passages.append((clients, passage))
            outputs.update(zip(clients, passage.outputs(), strict=True))
    failed = [client for client, output in outputs.items() if not bool(output.isfinite().all())]
    if failed:  # which would spoil the gradient of the others: once more without
        rest = {k: arrival for k, arrival in arrivals.items() if k not in failed}
        return replace(cross(middle, rest, server_round, step), failed=failed)
    size = activation_bytes(sizes, module.parameters())
    return Crossing(server_round, step, arrivals, passages, outputs, size)


def cross_back(
    middle: TrainedTail,
    crossing: Crossing,
    backs: Mapping[int, Back],
    weights: Mapping[int, float],
) -> Served:
    """Differentiate sum_k weights[k] loss_k over the clients of `backs`; the others are gone."""
    if not crossing.passages:
        crossing = cross(middle, crossing.arrivals, crossing.round, crossing.step)
    cuts: dict[int, Payload] = {}
    gradients = []
    for clients, passage in crossing.passages:
        there = [client for client in clients if client in backs]
        if there:
            found, gradient = retrace(
                middle.flat,
                passage,
                [
                    backs[k].gradient if k in backs else torch.zeros_like(crossing.outputs[k])
                    for k in clients
                ],
                [weights[k] if k in backs else 0.0 for k in clients],
            )
            gradients.append(gradient)
            cuts.update((k, cut) for k, cut in zip(clients, found, strict=True) if k in backs)
    flops = middle.flops({client: crossing.arrivals[client] for client in backs})
    losses = {client: back.loss for client, back in backs.items()}
    return Served(losses, cuts, total(gradients), flops)


def cross_back_and_step(middle: TrainedTail, crossing: Crossing, client: int, back: Back) -> Served:
    """Do that for one client, and step."""
    served = cross_back(middle, crossing, {client: back}, {client: 1.0})
    middle.descend(served.gradient)
    return served


@dataclass(frozen=True)
class Waiting:
    """A middle that waits for a client: which, and with which graph."""

    middle: TrainedTail
    crossing: Crossing


@dataclass
class UShapedRound(Round):
    """A round in progress whose clients have the end of the model, and the labels."""

    _waiting: dict[int, Waiting] = field(default_factory=dict)
    _kept: int = 0

    def serve(self, client: int, payload: Arrival, step: int) -> None:
        """Take one step of the middle on one payload and send the cut gradient."""
        crossing = cross(self.tail, {client: payload}, self.number, step)
        self._send_outputs(crossing)
        back = self._back(client, crossing)
        if back is not None:
            self._send(step, cross_back_and_step(self.tail, crossing, client, back))

    def serve_apart(
        self,
        tails: Mapping[int, TrainedTail],
        payloads: Mapping[int, Arrival],
        steps: Mapping[int, int],
    ) -> None:
        """Do the same with each client's own middle, beside whatever else is going on."""
        jobs = [(steps[client], client, payload) for client, payload in payloads.items()]

        def work() -> list[Crossing]:
            return [cross(tails[c], {c: payload}, self.number, step) for step, c, payload in jobs]

        def then(results: list[Crossing]) -> None:
            for (_, client, _), crossing in zip(jobs, results, strict=True):
                self._waiting[client] = Waiting(tails[client], self._keep(crossing))
                self._send_outputs(crossing)

        self.training.crew.submit(work, then)

    def _sort(self, client: int, reply: Message) -> Arrival | None:
        """Let a middle that waits for this reply step; else as for every round."""
        waiting = self._waiting.pop(client, None)
        if waiting is None:
            return super()._sort(client, reply)
        self._release(waiting.crossing)
        back = self._read(client, reply, waiting.crossing)
        if back is not None:
            work = partial(cross_back_and_step, waiting.middle, waiting.crossing, client, back)
            self.training.crew.submit(work, partial(self._send, waiting.crossing.step))
        return None

    def _jobs(self, clients: Sequence[int], step: int) -> Iterator[Job]:
        """Send all groups their outputs, then yield what serves each, as gradients come back."""
        crossings: dict[int, Crossing] = {}

        def then(number: int, crossing: Crossing) -> None:
            crossings[number] = self._keep(crossing)
            self._send_outputs(crossing)

        for number, payloads in enumerate(self._groups(clients)):
            work = partial(cross, self.tail, payloads, self.number, step)
            self.training.crew.submit(work, partial(then, number))
        self.mailbox.settle()
        for _, crossing in sorted(crossings.items()):
            self._release(crossing)
            found = {client: self._back(client, crossing) for client in crossing.outputs}
            backs = {client: back for client, back in found.items() if back is not None}
            if backs:
                yield (
                    list(backs),
                    partial(cross_back, self.tail, crossing, backs, self._weights_of(backs)),
                )

    def _keep(self, crossing: Crossing) -> Crossing:
        """Return `crossing`, without its graphs if there is no room for them."""
        if self._kept + crossing.size > GRAPH_BYTES:
            return replace(crossing, passages=(), size=0)
        self._kept += crossing.size
        return crossing

    def _release(self, crossing: Crossing) -> None:
        self._kept -= crossing.size

    def _send_outputs(self, crossing: Crossing) -> None:
        for client in crossing.failed:
            self.mailbox.drop(client, "sent what gives an output that is not finite")
        end = self.training.head.module.end
        assert end is not None
        for client, output in crossing.outputs.items():
            place = Place(self.training.seed, self.number, client, crossing.step)
            packed = pack(self.training.downlink, Payload({"tokens": output}), place, "output")
            self.end_flops += tail_step(end, *output.shape[:2])
            content = RecordDict({messages.PAYLOAD: messages.wrap(packed)})
            self.mailbox.send(client, messages.STEP, content)

    def _back(self, client: int, crossing: Crossing) -> Back | None:
        """Wait for what `client` makes of its output; None if it was dropped."""
        if client not in crossing.outputs or self.mailbox.dropped(client):
            return None
        reply = self.mailbox.receive(client)
        return None if reply is None else self._read(client, reply, crossing)

    def _read(self, client: int, reply: Message, crossing: Crossing) -> Back | None:
        """Read loss and gradient; drop the client if they are not what they should be."""
        try:
            packed = messages.unwrap(reply.content.array_records[messages.GRADIENT])
            payload = self.training.downlink.unpack(packed)
            check_finite(payload)
            gradient, output = payload.values["tokens"], crossing.outputs[client]
            if gradient.shape != output.shape:
                got, expected = tuple(gradient.shape), tuple(output.shape)
                raise ValueError(f"a gradient of shape {got}, expected {expected}")
            loss = messages.metric(reply, messages.LOSS)
            if not math.isfinite(loss):
                raise ValueError("a loss that is not finite")
            return Back(loss, gradient)
        except (KeyError, IndexError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            self.mailbox.drop(client, f"sent {error}")
            return None
