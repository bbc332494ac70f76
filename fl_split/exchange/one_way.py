"""One way: clients learn from an auxiliary classifier; smashed data go up, nothing comes down.

    client: head -> auxiliary -> loss ; both step, batch after batch
    client: head -> encode ─── payload of every h-th batch ───►  decode -> tail -> loss   :server

The gradient of the auxiliary's loss is the head's; the server says no more than that a payload
has come, and a client need not wait for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fl_split.codecs import Codec
from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.link import Arrival, Link
from fl_split.exchange.protocol import Batch, ClientSide, Flops, Step
from fl_split.exchange.records import (
    BEGIN,
    GO_ON,
    PAYLOAD,
    SAMPLES,
    SKIP,
    SMASHED_BYTES,
    STEPS,
    TAKEN,
    Record,
)
from fl_split.exchange.served import HalfServed, Served
from fl_split.exchange.split import Split, encode, head_gradient, smashed
from fl_split.flat import Flat, copy_trained
from fl_split.models.auxiliary import Auxiliary, Size, shortened
from fl_split.models.cut import Head, Tail, draws
from fl_split.payload import Payload
from fl_split.seeds import StepId


@dataclass(frozen=True, kw_only=True)
class OneWay(Split):
    """One cut, over which nothing comes down but weights; labels go up with the smashed data.

    The auxiliary is beside the head: its weights travel, are averaged and optimised with the
    head's. `every` is h; the first batch of a round goes up.

    Attributes
    ----------
    auxiliary : int or "tail"
        Stages of the tail that the auxiliary has before its classifier.
    """

    auxiliary: Size = 1

    can_stack: ClassVar[bool] = False
    is_one_way: ClassVar[bool] = True

    # The client's half.

    def receive(self, client: ClientSide, record: Record) -> Record | None:
        """Enter the round, or go on: what was sent has come, or was lost."""
        if record.action in (BEGIN, GO_ON):
            client.begin(record)
        elif record.action not in (TAKEN, SKIP):
            raise ValueError(f"learning from an auxiliary knows no {record.action!r}")
        elif client.at.step != record.step * self.every + 1:
            raise RuntimeError(f"payload {record.step} has come, in step {client.at.step}")
        return None

    def send(self, client: ClientSide) -> Record:
        """Learn from batches until one has been sent, or the round ends."""
        if not client.has_batch() or self.is_silent(client.at.round):
            return super().send(client)
        samples = steps = 0
        while client.has_batch():
            at, size = client.at, client.batch_samples
            samples, steps = samples + size, steps + 1
            payload = client.forward()
            data = None
            if self._is_due(at.step):
                at = replace(at, step=at.step // self.every)
                data = client.up(payload, at)
            client.learn(client.backward(None))
            if data is not None:
                size *= client.head.module.smashed_bytes
                numbers = {SAMPLES: samples, STEPS: steps, SMASHED_BYTES: size}
                return Record(PAYLOAD, payload=data, numbers=numbers, step=at.step)
        end = client.end()
        return replace(end, numbers={**end.numbers, SAMPLES: samples, STEPS: steps})

    def smash(
        self, head: Head, codec: Codec, batch: Batch, at: StepId, memory: dict[str, Tensor]
    ) -> Payload:
        """Run head and auxiliary, and encode what is sent, without a graph."""
        ahead = self.ahead(head, batch, at)
        payload = Payload({})
        if self._is_due(at.step):
            without = ahead._replace(tokens=ahead.tokens.detach())
            payload = encode(codec, smashed(without, head, batch), at)
        return replace(payload, local=ahead.local, work=ahead.work)

    def flops(self, head: Head, tail: Tail) -> Flops:
        """Operations of head and auxiliary: a client is done with them before it sends."""
        return Flops(super().flops(head, tail).total, 0)

    def flops_of_round(self, number: int, head: Head, tail: Tail) -> Flops:
        """Return the same in a round."""
        return Flops(super().flops_of_round(number, head, tail).total, 0)

    def _is_due(self, step: int) -> bool:
        """Tell whether the batch of a step goes up."""
        return step % self.every == 0

    # The server's half.

    def serve(
        self,
        tail: Flat[Tail],
        arrivals: Mapping[int, Arrival],
        weights: Mapping[int, float],
        at: StepId,
        graphs: GraphMemory,
    ) -> Served | HalfServed:
        """Compute losses and the tail's gradient; cut gradients are empty."""
        return super().serve(tail, _without_leaves(arrivals), weights, at, graphs)

    # Both halves in one process.

    def prepare(self, head: Head, tail: Tail, seed: int) -> None:
        """Put the auxiliary beside the head.

        Raises
        ------
        ValueError
            Numbers of tokens vary, a codec is trained, or stages of the tail are not known.
        """
        if head.varies:
            raise ValueError(
                "strategy: an auxiliary needs as many tokens of all images; take tokens with "
                "rate_mode='exact_topk' and trained_at='rate'"
            )
        if any(weight.requires_grad for weight in head.encoder.parameters()):
            raise ValueError(
                "strategy: no gradient comes back through a codec that is trained; take another "
                "codec, as uniform(bits=8)"
            )
        found = copy_trained(shortened(tail, self.auxiliary, seed))
        head.beside.append(Auxiliary(found, head.most_sent))
        head.has_dropout = head.has_dropout or draws(found)

    def step(
        self, head: Flat[Head], tail: Flat[Tail], link: Link, batch: Batch, at: StepId
    ) -> Step:
        """Take one step of the client and, if the batch goes up, one of the server."""
        payload = self.smash(head.module, link.codec, batch, at, {})
        assert payload.local is not None
        of_head = head_gradient(head, payload, None, self.precision)
        if self.is_silent(at.round) or not self._is_due(at.step):
            nothing = torch.zeros_like(tail.vector)
            return Step(float(payload.local.detach()), of_head, nothing)
        arrivals = _without_leaves({at.client: link.carry(payload, at, tail.module)})
        (loss,), _, of_tail = self.cut_gradients(tail, [*arrivals.values()], [1.0], at)
        return Step(loss, of_head, of_tail)


def _without_leaves(arrivals: Mapping[int, Arrival]) -> dict[int, Arrival]:
    """Return payloads of which nobody wants a gradient."""
    return {client: Arrival({}, arrival.received) for client, arrival in arrivals.items()}
