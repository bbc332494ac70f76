"""Split learning: smashed data go up, the cut gradient comes down.

    client: head -> encode ─── payload ───►  decode -> tail -> loss      :server
    client: head <─ gradient ◄─ d loss / d values ◄───────┘

The gradient is taken at the payload's values, so autograd covers both halves and the downlink
shrinks with the uplink.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fl_split.codecs import Codec, Smashed
from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.link import Arrival, Link
from fl_split.exchange.local_loss import (
    flops_of_batch,
    flops_of_phase,
    learning,
    local_loss,
    told,
    train_beside,
)
from fl_split.exchange.mixing import attach
from fl_split.exchange.protocol import Batch, ClientSide, Exchange, Flops, Step
from fl_split.exchange.records import (
    BEGIN,
    GO_ON,
    GRADIENT,
    PAYLOAD,
    SAMPLES,
    SKIP,
    SMASHED_BYTES,
    STEPS,
    Record,
)
from fl_split.exchange.served import HalfServed, Served
from fl_split.exchange.serving import batches, serving_flops
from fl_split.exchange.soundness import shapes
from fl_split.exchange.tail_loss import answers, joint_loss, learning_exits
from fl_split.flat import Flat
from fl_split.models.beside import Trace
from fl_split.models.cut import Head, Tail
from fl_split.models.mixture import balance_loss, watching
from fl_split.models.parts import EVERY, EXITS_ALONE
from fl_split.payload import Payload
from fl_split.recipe.precision import FP32, Precision
from fl_split.seeds import Purpose, StepId, seeded


class Ahead(NamedTuple):
    """What a head has made of a batch.

    Tokens (B, N, D), what gives attention, the local loss, how many tokens (B,) each sample has
    if that differs, and operations where these could not be known beforehand.
    """

    tokens: Tensor
    attention: Callable[[], Tensor]
    local: Tensor | None
    counts: Tensor | None
    work: Flops | None


@dataclass(frozen=True)
class Split(Exchange):
    """One cut; labels go up with the smashed data, the loss is the server's."""

    can_stack = True

    # The client's half.

    def receive(self, client: ClientSide, record: Record) -> Record | None:
        """Enter the round, learn from a cut gradient, or go on without one."""
        if record.action in (BEGIN, GO_ON):
            client.begin(record)
        elif record.action == GRADIENT:
            client.learn(client.backward(record))
        elif record.action == SKIP and self.learns_alone(client.head.module, client.at.round):
            client.learn(client.backward(None))
        elif record.action == SKIP:
            client.skip()
        else:
            raise ValueError(f"split learning knows no {record.action!r}")
        return None

    def send(self, client: ClientSide) -> Record:
        """Send the smashed data of the next batch, or end the round."""
        if not client.has_batch():
            return client.end()
        if self.is_silent(client.at.round):
            return train_beside(client)
        samples = client.batch_samples
        size = samples * client.head.module.smashed_bytes
        payload = client.forward()
        return Record(
            PAYLOAD,
            payload=client.up(payload),
            numbers={SAMPLES: samples, STEPS: 1, SMASHED_BYTES: size, **told(payload.work)},
            step=client.at.step,
        )

    def is_silent(self, number: int) -> bool:
        """Tell whether a round trains exits alone: the server has nothing to say of them."""
        return self.phases.trains(number) == EXITS_ALONE

    def smash(
        self, head: Head, codec: Codec, batch: Batch, at: StepId, memory: dict[str, Tensor]
    ) -> Payload:
        """Run the head and encode; nothing must be remembered."""
        ahead = self.ahead(head, batch, at)
        payload = encode(codec, smashed(ahead, head, batch), at)
        return replace(payload, local=ahead.local, work=ahead.work)

    def ahead(self, head: Head, batch: Batch, at: StepId) -> Ahead:
        """Run the head."""
        trains = self.phases.trains(at.round)
        parts = learning(head, trains)
        trace = Trace() if parts or head.varies else None
        traced = (trace,) if trace else ()
        with randomness(head, "head", at), self.precision.forward(batch.pixels):
            tokens, attention = head(batch.pixels, *traced)
            if trace and trains == EXITS_ALONE:  # nothing goes back into the trunk
                trace = replace(trace, hidden=[hidden.detach() for hidden in trace.hidden])
            if trace:
                trace.sent = tokens
            local = local_loss(parts, trace, batch, self.loss) if trace and parts else None
        counts, work = None, None
        if trace and head.varies:
            counts, work = trace.counts, flops_of_batch(trains, head, trace.kept, len(tokens))
        return Ahead(tokens.float(), attention, local, counts, work)

    def flops(self, head: Head, tail: Tail) -> Flops:
        """Operations of the head with what is beside it, without its end."""
        return flops_of_phase(EVERY, head)

    def flops_of_round(self, number: int, head: Head, tail: Tail) -> Flops:
        """Return operations of the head, and of what is beside it where that is trained."""
        return flops_of_phase(self.phases.trains(number), head)

    # The server's half.

    def serve(
        self,
        tail: Flat[Tail],
        arrivals: Mapping[int, Arrival],
        weights: Mapping[int, float],
        at: StepId,
        graphs: GraphMemory,
    ) -> Served | HalfServed:
        """Compute losses, cut gradients and the tail's gradient."""
        losses: dict[int, float] = {}
        cuts: dict[int, Payload] = {}
        gradients = []
        for clients in batches(tail.module, arrivals):
            values, payloads, gradient = self.cut_gradients(
                tail,
                [arrivals[client] for client in clients],
                [weights[client] for client in clients],
                replace(at, client=clients[0]),
            )
            losses.update(zip(clients, values, strict=True))
            cuts.update(zip(clients, payloads, strict=True))
            gradients.append(gradient)
        failed = [client for client, loss in losses.items() if not math.isfinite(loss)]
        if failed:  # their losses spoil the sum: serve the others again
            rest = {k: arrival for k, arrival in arrivals.items() if k not in failed}
            if not rest:
                return Served({}, {}, torch.zeros_like(tail.vector), 0, failed)
            return replace(self.serve(tail, rest, weights, at, graphs), failed=failed)
        exits = learning_exits(tail.module, self.phases.trains(at.round))
        flops = serving_flops(tail.module, arrivals, exits)
        return Served(losses, cuts, total(gradients), flops)

    # Both halves in one process.

    def step(
        self, head: Flat[Head], tail: Flat[Tail], link: Link, batch: Batch, at: StepId
    ) -> Step:
        """Take one whole exchange; the loss and the gradients of both halves."""
        payload = self.smash(head.module, link.codec, batch, at, {})
        if payload.local is not None and self.is_silent(at.round):
            alone = head_gradient(head, payload, None, self.precision)
            loss, of_tail = float(payload.local.detach()), torch.zeros_like(tail.vector)
            return Step(loss, alone, of_tail, payload.work and sum(payload.work))
        arrival = link.carry(payload, at, tail.module)
        (loss,), (cut,), of_tail = self.cut_gradients(tail, [arrival], [1.0], at)
        exits = learning_exits(tail.module, self.phases.trains(at.round))
        work = payload.work and sum(payload.work) + serving_flops(tail.module, {0: arrival}, exits)
        return Step(loss, head_gradient(head, payload, cut, self.precision), of_tail, work)

    # Gradients.

    def cut_gradients(
        self,
        tail: Flat[Tail],
        arrivals: Sequence[Arrival],
        weights: Sequence[float],
        at: StepId,
    ) -> tuple[list[float], list[Payload], Tensor]:
        """Return losses, cut gradients, and the tail's gradient of sum_k weights[k] loss_k.

        All arrivals run through the tail as one batch, so they must have the same number of
        tokens, and with batch norm or experts each must come alone. Each cut gradient is that of
        the client's own loss, to which exits of the tail add theirs and experts their balance
        loss; losses are without both.
        """
        assert len(arrivals) == 1 or not tail.module.serves_alone
        received = [arrival.received for arrival in arrivals]
        randomly = randomness(tail.module, "tail", at)
        exits = learning_exits(tail.module, self.phases.trains(at.round))
        with randomly, self.precision.forward(received[0].tokens), watching() as routings:
            logits = answers(tail.module, exits, received)
        joint, losses = joint_loss(self.loss, exits, logits, received, weights)
        if routings:
            joint = joint + weights[0] * balance_loss(routings)
        leaves = [leaf for arrival in arrivals for leaf in arrival.leaves.values()]
        gradient, cuts = self.precision.differentiate(tail, [joint], inputs=leaves)
        if tail.statistics is not None:  # the weight in the joint loss does not reach them
            gradient[tail.statistics] *= weights[0]
        following = iter(cuts)
        payloads = [
            # Undo the weight in the joint loss: a head follows its own client's loss.
            Payload({name: next(following) / weight for name in arrival.leaves})
            for arrival, weight in zip(arrivals, weights, strict=True)
        ]
        return losses, payloads, gradient


def smashed(ahead: Ahead, head: Head, batch: Batch) -> Smashed:
    """Return what a head gives a codec."""
    known = ahead.tokens, ahead.attention, batch.labels, batch.num_classes
    return Smashed(*known, head.num_read, batch.mixed, ahead.counts)


def encode(codec: Codec, smashed: Smashed, at: StepId) -> Payload:
    """Encode with the randomness of a step."""
    if smashed.tokens.requires_grad:  # sums in the head must not depend on strides
        smashed.tokens.register_hook(torch.Tensor.contiguous)
    payload = codec.encode(smashed, at.generator("codec"))
    return attach(payload, smashed.mixed) if smashed.mixed else payload


def head_gradient(
    head: Flat[Head], payload: Payload, gradient: Payload | None, precision: Precision = FP32
) -> Tensor:
    """Return the head's gradient for the cut gradient of its payload, None for its loss alone.

    Raises
    ------
    ValueError
        The gradient does not have the names and shapes of the payload's values.
    """
    if gradient is None:
        assert payload.local is not None
        return precision.differentiate(head, [payload.local])[0]
    return precision.differentiate(head, *pair(payload, gradient))[0]


def pair(payload: Payload, gradient: Payload) -> tuple[list[Tensor], list[Tensor]]:
    """Return the values of `payload` and their gradients, in the same order; its loss is one.

    Raises
    ------
    ValueError
        The gradient does not have the names and shapes of the payload's values.
    """
    expected, got = shapes(payload), shapes(gradient)
    if expected != got:
        raise ValueError(f"cut gradient must have the shapes {expected}, got {got}")
    values, gradients = [*payload.carried.values()], [gradient.carried[k] for k in payload.carried]
    if payload.local is None:
        return values, gradients
    return [*values, payload.local], [*gradients, torch.ones_like(payload.local)]


def randomness(module: Head | Tail, purpose: Purpose, at: StepId) -> AbstractContextManager[None]:
    """Seed what `module` draws in a training forward, if it draws anything."""
    return seeded(at.seed, purpose, *at.path()) if module.has_dropout else nullcontext()


def total(gradients: Sequence[Tensor]) -> Tensor:
    """Add up in the order given, in place of the first."""
    first, *others = gradients
    for gradient in others:
        first.add_(gradient)
    return first
