"""The U-shape: the last stages are the client's too, and labels never leave it.

    client: head -> encode ── payload ──►  decode -> middle            :server
    client: end  <────────── output ◄─────────────────┘
    client: loss ── gradient of the output ──►  middle
    client: head <────────── gradient ◄────────────┘

What is sent is encoded as if all labels were 0; which rows a codec makes of a batch does not
depend on labels, so that the client knows the targets of the rows that come back. Outputs and
their gradients are packed as cut gradients are, but without error feedback: samples change.
End and head step together, or neither does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fl_split.activations import activation_bytes, saved
from fl_split.codecs import Codec, Received, Smashed
from fl_split.exchange.end import add_end, conclude
from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.link import Arrival, Link
from fl_split.exchange.mixing import mix
from fl_split.exchange.protocol import Batch, ClientSide, Step
from fl_split.exchange.records import GRADIENT, LOSS, SMASHED_BYTES, Record
from fl_split.exchange.served import HalfServed, Served
from fl_split.exchange.serving import batches, serving_flops, through
from fl_split.exchange.soundness import check_finite
from fl_split.exchange.split import Split, encode, head_gradient, randomness, total
from fl_split.flat import Flat
from fl_split.models.cut import Head, Tail
from fl_split.models.mixture import balance_loss, watching
from fl_split.payload import Payload
from fl_split.seeds import StepId

OUTPUT, OUTPUT_GRADIENT = "output", "output_gradient"
"""The server sends what the middle made of a payload; the client answers with the gradient of
its loss in that output, and with the loss."""

TARGETS, ROW_WEIGHTS, OF_END = "targets", "row-weights", "of-end"
"""What a client remembers: targets of the rows that will come back; then the end's gradient."""

Answer = tuple[float, Tensor]
"""A client's loss, and its gradient in the output (K, T, D)."""


def crossing(head: Head, **settings: Any) -> Split:
    """Return the exchange of a model that has been cut once, or twice."""
    return Split(**settings) if head.end is None else UShape(**settings)


@dataclass(frozen=True)
class MiddleForward:
    """Payloads that ran through the middle as one batch; `output` (rows, T, D) has the graph.

    `balance` is the balance loss of experts in the middle, if there are some.
    """

    arrivals: Mapping[int, Arrival]
    output: Tensor
    balance: Tensor | None = None

    def outputs(self) -> dict[int, Tensor]:
        """Return what came out, by client, (K, T, D) each and without graph."""
        parts = self.output.detach().split([arrival.rows for arrival in self.arrivals.values()])
        return dict(zip(self.arrivals, parts, strict=True))


@dataclass(frozen=True)
class UShape(Split):
    """Two cuts; the loss is the client's."""

    can_stack = False

    # The client's half.

    def receive(self, client: ClientSide, record: Record) -> Record | None:
        """Enter the round; run an output through the end; or learn from a cut gradient."""
        needed = {OUTPUT: TARGETS, GRADIENT: OF_END}.get(record.action)
        if needed and needed not in client.memory:
            raise RuntimeError("no exchange in progress: this client's state was lost")
        if record.action == OUTPUT:
            return self._conclude(client, record)
        if record.action == GRADIENT:
            of_head = client.backward(record)
            client.learn(add_end(client.head, of_head, client.memory[OF_END]))
            _forget(client.memory)
            return None
        _forget(client.memory)
        return super().receive(client, record)

    def _conclude(self, client: ClientSide, record: Record) -> Record:
        memory, at = client.memory, client.at
        output = client.link.read(record.sent(), at).carried["tokens"]
        received = Received(output, memory[TARGETS], memory.get(ROW_WEIGHTS))
        value, of_end, of_output = conclude(client.head, received, at, self.loss, self.precision)
        sent = client.link.across(Payload({"tokens": of_output}), at, "way back")
        _forget(memory)
        memory[OF_END] = of_end
        size = client.batch_samples * client.head.module.output_bytes
        numbers = {LOSS: value, SMASHED_BYTES: size}
        return Record(OUTPUT_GRADIENT, sent, numbers=numbers, step=at.step)

    def smash(
        self, head: Head, codec: Codec, batch: Batch, at: StepId, memory: dict[str, Tensor]
    ) -> Payload:
        """Turn a batch into a payload without its labels; remember the targets."""
        ahead = self.ahead(head, batch, at)
        tokens, attention, classes = ahead.tokens, cache(ahead.attention), batch.num_classes
        nothing = torch.zeros_like(batch.labels)
        unknown = Smashed(tokens, attention, nothing, classes, head.num_read)
        payload = encode(codec, unknown, at)
        with torch.no_grad():
            known = tokens.detach(), attention, batch.labels, classes, head.num_read, batch.mixed
            own = encode(codec, Smashed(*known), at)
            received = mix(codec.decode(own), own.side, classes)
        memory[TARGETS] = received.targets
        if received.weights is not None:
            memory[ROW_WEIGHTS] = received.weights
        return replace(payload, local=ahead.local, work=ahead.work)

    # The server's half.

    def serve(
        self,
        tail: Flat[Tail],
        arrivals: Mapping[int, Arrival],
        weights: Mapping[int, float],
        at: StepId,
        graphs: GraphMemory,
    ) -> HalfServed:
        """Run payloads through the middle; the rest waits for the clients' ends.

        The middle's graphs are kept meanwhile, as far as `graphs` has room; else the forward
        is repeated, with the same weights and so the same bits.
        """
        forwards, size = self._forwards(tail.module, arrivals, at)
        outputs = {k: found for forward in forwards for k, found in forward.outputs().items()}
        failed = [k for k, output in outputs.items() if not bool(output.isfinite().all())]
        if failed:  # their outputs would spoil the joint gradient: serve the others again
            rest = {k: arrival for k, arrival in arrivals.items() if k not in failed}
            return replace(self.serve(tail, rest, weights, at, graphs), failed=failed)
        kept = forwards if graphs.take(size) else None

        def resume(answers: Mapping[int, Answer]) -> Served:
            if kept is not None:
                graphs.give(size)
            if not answers:
                return Served({}, {}, torch.zeros_like(tail.vector), 0)
            again = kept or self._forwards(tail.module, arrivals, at)[0]
            return self._serve_back(tail, again, answers, weights)

        return HalfServed(
            OUTPUT,
            {k: Payload({"tokens": output}) for k, output in outputs.items()},
            lambda client, link, record: _read(
                link, record, outputs[client], replace(at, client=client)
            ),
            resume,
            {k: a.rows * tail.module.row_flops(a.tokens)[0] for k, a in arrivals.items()},
        )

    def answer_flops(self, head: Head, output: Payload) -> int:
        """Operations of the end on one output."""
        assert head.end is not None
        rows, tokens, _ = output.carried["tokens"].shape
        return rows * head.end.row_flops(tokens)[1]

    def step(
        self, head: Flat[Head], tail: Flat[Tail], link: Link, batch: Batch, at: StepId
    ) -> Step:
        """Take one whole exchange; the loss and the gradients of both halves."""
        if self.is_silent(at.round):
            return super().step(head, tail, link, batch, at)
        memory: dict[str, Tensor] = {}
        payload = self.smash(head.module, link.codec, batch, at, memory)
        arrival = link.carry(payload, at, tail.module)
        forward = self._traverse(tail.module, {at.client: arrival}, at)
        received = Received(forward.output, memory[TARGETS], memory.get(ROW_WEIGHTS))
        value, of_end, of_output = conclude(head, received, at, self.loss, self.precision)
        (cut,), of_middle = self._retrace(tail, forward, [of_output], [1.0])
        of_head = head_gradient(head, payload, cut, self.precision)
        work = payload.work and (
            sum(payload.work)
            + serving_flops(tail.module, {at.client: arrival})
            + self.answer_flops(head.module, Payload({"tokens": forward.output}))
        )
        return Step(value, add_end(head, of_head, of_end), of_middle, work)

    def _forwards(
        self, middle: Tail, arrivals: Mapping[int, Arrival], at: StepId
    ) -> tuple[list[MiddleForward], int]:
        """Run all arrivals through the middle; return its graphs and their bytes."""
        with saved() as sizes:
            forwards = [
                self._traverse(
                    middle, {k: arrivals[k] for k in clients}, replace(at, client=clients[0])
                )
                for clients in batches(middle, arrivals)
            ]
        return forwards, activation_bytes(sizes, middle.parameters())

    def _traverse(self, middle: Tail, arrivals: Mapping[int, Arrival], at: StepId) -> MiddleForward:
        """Run arrivals through the middle as one batch.

        They must have the same number of tokens; with batch norm or experts each comes alone.
        """
        assert len(arrivals) == 1 or not middle.serves_alone
        received, randomly = (
            [one.received for one in arrivals.values()],
            randomness(middle, "tail", at),
        )
        with randomly, self.precision.forward(received[0].tokens), watching() as routings:
            output = through(middle, received).float()
        return MiddleForward(arrivals, output, balance_loss(routings) if routings else None)

    def _serve_back(
        self,
        middle: Flat[Tail],
        forwards: Sequence[MiddleForward],
        answers: Mapping[int, Answer],
        weights: Mapping[int, float],
    ) -> Served:
        """Differentiate sum_k weights[k] loss_k over the clients of `answers`; others are gone."""
        cuts: dict[int, Payload] = {}
        gradients = []
        arrivals: dict[int, Arrival] = {}
        for forward in forwards:
            if not answers.keys() & forward.arrivals.keys():
                continue
            of_outputs = [
                answers[k][1] if k in answers else torch.zeros_like(output)
                for k, output in forward.outputs().items()
            ]
            counted = [weights[k] if k in answers else 0.0 for k in forward.arrivals]
            found, gradient = self._retrace(middle, forward, of_outputs, counted)
            gradients.append(gradient)
            cuts |= {k: cut for k, cut in zip(forward.arrivals, found, strict=True) if k in answers}
            arrivals |= {k: arrival for k, arrival in forward.arrivals.items() if k in answers}
        losses = {client: value for client, (value, _) in answers.items()}
        return Served(losses, cuts, total(gradients), serving_flops(middle.module, arrivals))

    def _retrace(
        self,
        middle: Flat[Tail],
        forward: MiddleForward,
        gradients: Sequence[Tensor],
        weights: Sequence[float],
    ) -> tuple[list[Payload], Tensor]:
        """Return cut gradients, and the middle's gradient of sum_k weights[k] loss_k.

        `gradients` are those of each client's own loss in its output, and so are the cut
        gradients. A client of weight 0 takes no part; its cut gradient means nothing.
        """
        outputs = [forward.output]
        scaled = [torch.cat([g * weight for g, weight in zip(gradients, weights, strict=True)])]
        if forward.balance is not None:
            outputs.append(forward.balance)
            scaled.append(torch.full_like(forward.balance, weights[0]))
        arrivals = list(forward.arrivals.values())
        leaves = [leaf for arrival in arrivals for leaf in arrival.leaves.values()]
        gradient, cuts = self.precision.differentiate(middle, outputs, scaled, inputs=leaves)
        if middle.statistics is not None:  # the weight does not reach them
            gradient[middle.statistics] *= weights[0]
        following = iter(cuts)
        payloads = [
            Payload({name: next(following) / (weight or 1.0) for name in arrival.leaves})
            for arrival, weight in zip(arrivals, weights, strict=True)
        ]
        return payloads, gradient


def _forget(memory: dict[str, Tensor]) -> None:
    """Forget what was remembered of an exchange; what a codec remembers stays."""
    for name in (TARGETS, ROW_WEIGHTS, OF_END):
        memory.pop(name, None)


def _read(link: Link, record: Record, output: Tensor, at: StepId) -> Answer:
    """Read loss and gradient; raise ValueError if they are not what they should be."""
    if record.action != OUTPUT_GRADIENT:
        raise ValueError(f"a {record.action!r} where the gradient of an output was due")
    payload = link.read(record.sent(), at)
    check_finite(payload)
    gradient = payload.carried.get("tokens")
    if gradient is None or gradient.shape != output.shape:
        got = None if gradient is None else tuple(gradient.shape)
        raise ValueError(f"a gradient of shape {got}, expected {tuple(output.shape)}")
    value = record.number(LOSS)
    if not math.isfinite(value):
        raise ValueError("a loss that is not finite")
    return value, gradient
