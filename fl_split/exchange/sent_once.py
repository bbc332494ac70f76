"""Sent once: clients first learn by themselves; then each sends all its smashed data, and no more.

    rounds 1..alone   client: head -> auxiliary -> loss ; both step, batch after batch
    later             client: head -> encode ─── one pass over its samples ───►  decode   :server

In the first part nothing crosses the cut. In the second one a client learns nothing: it is sent
the head that all have made, and does not send it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fl_split.codecs import Codec
from fl_split.exchange.link import Arrival, Link
from fl_split.exchange.one_way import OneWay
from fl_split.exchange.protocol import Batch, ClientSide, Flops, Step
from fl_split.exchange.records import END, Record
from fl_split.exchange.split import Ahead, Split, encode, smashed
from fl_split.flat import Flat
from fl_split.models.cut import Head, Tail
from fl_split.payload import Payload
from fl_split.seeds import StepId


@dataclass(frozen=True, kw_only=True)
class SentOnce(OneWay):
    """One way in two parts: head and auxiliary learn, then every sample is sent once.

    Smashed data are sent as the trained head makes them in evaluation: without dropout, batch norms
    by their running statistics.

    Attributes
    ----------
    alone : int
        Rounds of the first part.
    """

    alone: int = 1

    # The client's half.

    def is_silent(self, number: int) -> bool:
        """Tell whether a round is of the first part."""
        return number <= self.alone

    def only_sends(self, number: int) -> bool:
        """Tell whether a round is of the second part."""
        return number > self.alone

    def send(self, client: ClientSide) -> Record:
        """Learn for a whole round; or send the next batch, and in the end no head."""
        if self.is_silent(client.at.round):
            return super().send(client)
        record = Split.send(self, client)
        if record.action == END:
            return replace(record, weights={})
        client.skip()
        return record

    def smash(
        self, head: Head, codec: Codec, batch: Batch, at: StepId, memory: dict[str, Tensor]
    ) -> Payload:
        """Run head and auxiliary for their loss; or run the head alone, and encode."""
        if self.is_silent(at.round):
            ahead = self.ahead(head, batch, at)
            return Payload({}, local=ahead.local, work=ahead.work)
        with torch.no_grad(), _evaluating(head):
            with self.precision.forward(batch.pixels):
                tokens, attention = head(batch.pixels)
            ahead = Ahead(tokens.float(), attention, None, None, None)
            return encode(codec, smashed(ahead, head, batch), at)

    def flops_of_round(self, number: int, head: Head, tail: Tail) -> Flops:
        """Return operations of head and auxiliary, in the second part of the head's forward."""
        if self.only_sends(number):
            return Flops(head.forward_flops(1), 0)
        return super().flops_of_round(number, head, tail)

    # Both halves in one process.

    def step(
        self, head: Flat[Head], tail: Flat[Tail], link: Link, batch: Batch, at: StepId
    ) -> Step:
        """Take one step of the client, or in the second part one of the server."""
        if self.is_silent(at.round):
            return super().step(head, tail, link, batch, at)
        payload = self.smash(head.module, link.codec, batch, at, {})
        came = Arrival({}, link.carry(payload, at, tail.module).received)
        (loss,), _, of_tail = self.cut_gradients(tail, [came], [1.0], at)
        return Step(loss, torch.zeros_like(head.vector), of_tail)


@contextmanager
def _evaluating(head: Head) -> Iterator[None]:
    """Put a head into evaluation mode in the block."""
    was = head.training
    head.eval()
    try:
        yield
    finally:
        head.train(was)
