"""Whole models: a client trains head and tail for one round, and nothing else crosses.

    client: weights ◄── BEGIN ── server ;  all steps of the round ;  weights ── END ──► server

Also the joined model, as evaluation and the saved files have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from fl_split.codecs import Identity
from fl_split.exchange.link import Link
from fl_split.exchange.local_loss import flops_of_phase, told
from fl_split.exchange.local_round import LocalRound
from fl_split.exchange.protocol import Batch, ClientSide, Exchange, Flops, Step
from fl_split.exchange.records import (
    BEGIN,
    GO_ON,
    HEAD,
    LOSS,
    SAMPLES,
    STEPS,
    TAIL,
    Record,
    Weights,
)
from fl_split.exchange.tail_loss import learning_exits
from fl_split.exchange.ushape import crossing
from fl_split.exits import Exits, exits_of
from fl_split.flat import Flat
from fl_split.models.beside import Trace
from fl_split.models.costs import whole_flops
from fl_split.models.cut import Head, Tail
from fl_split.models.parts import EXITS_ALONE
from fl_split.ragged import run
from fl_split.recipe.precision import FP32, Precision
from fl_split.seeds import StepId

MOMENT = "tail-moment/"
"""What begins the name under which a client remembers a moment of its own tail's optimiser."""


class Joined(nn.Module):
    """Head and tail as one module, with the trained encoder and decoder of a codec between."""

    def __init__(self, head: Head, tail: Tail) -> None:
        super().__init__()
        self.head: Head = head
        self.tail: Tail = tail

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, classes) for images (B, C, H, W)."""
        return joined(self.head, self.tail, pixels)


@dataclass(frozen=True)
class Whole(Exchange):
    """A client trains the whole model, those that came or its own; uncompressed.

    Attributes
    ----------
    local : type[LocalRound]
        What becomes of a round; an algorithm beside FedAvg has its own.
    """

    local: ClassVar[type[LocalRound]] = LocalRound
    trains_whole_models = True

    def receive(self, client: ClientSide, record: Record) -> Record:
        """Train for one round."""
        if record.action not in (BEGIN, GO_ON):
            raise ValueError(f"training of whole models knows no {record.action!r}")
        client.begin(record)
        tail, memory = client.tail, client.memory
        is_own = record.action == GO_ON
        descent = client.load_tail(None if is_own else record.weights[TAIL].numpy())
        if is_own and TAIL in memory:
            tail.load(memory[TAIL])
            kept = {k: v for k, v in memory.items() if k.startswith(MOMENT)}
            descent.restore({name.removeprefix(MOMENT): v for name, v in kept.items()})
        local = self.local(self, client, record, descent)
        losses, samples, work = self._train(local)
        vectors, beside = local.end(len(losses))
        if is_own:
            memory |= {TAIL: tail.vector.detach().clone()}
            memory |= {f"{MOMENT}{name}": moment for name, moment in descent.state().items()}
        end = client.end()
        weights = end.weights if is_own else {**end.weights, TAIL: Weights.of(tail.numpy())}
        numbers = {LOSS: sum(losses) / len(losses), SAMPLES: samples, STEPS: len(losses)}
        said = {**end.numbers, **numbers, **told((work, 0)), **beside}
        return Record(end.action, weights={**weights, **vectors}, numbers=said)

    def step(
        self, head: Flat[Head], tail: Flat[Tail], link: Link, batch: Batch, at: StepId
    ) -> Step:
        """Take one step of the joined model; nothing crosses, so `link` has nothing to pack."""
        settings = {"loss": self.loss, "precision": self.precision, "phases": self.phases}
        alike = crossing(head.module, **settings)
        return alike.step(head, tail, Link(Identity(), Identity()), batch, at)

    def flops(self, head: Head, tail: Tail) -> Flops:
        """Operations of head, tail and end together."""
        return Flops(whole_flops(head, tail, 1), 0)

    def flops_of_round(self, number: int, head: Head, tail: Tail) -> Flops:
        """Return the same, without what a phase leaves out."""
        whole, trains = self.flops(head, tail).forward, self.phases.trains(number)
        if trains == EXITS_ALONE:
            return Flops(flops_of_phase(trains, head).total, 0)
        behind = [] if learning_exits(tail, trains) else tail.parts_beside
        idle = [*(one for one in head.parts_beside if not one.counts(trains)), *behind]
        return Flops(whole - sum(part.flops(1) for part in idle), 0)

    def _train(self, local: LocalRound) -> tuple[list[float], int, int]:
        """Take all steps of the round; return their losses, samples and told operations."""
        client, tail, losses, samples, work = local.client, local.descents[TAIL], [], 0, 0
        while client.has_batch():
            batch = client.batch()
            found = local.step(batch)
            of_head, of_tail = local.gradient(HEAD, found.of_head), found.of_tail
            client.learn_with(tail, [of_head, local.gradient(TAIL, of_tail)])
            losses.append(found.loss)
            samples += len(batch.labels)
            work += found.work or 0
        client.finish_with(tail)
        return losses, samples, work


def joined(
    head: Head, tail: Callable[[Tensor], Tensor], pixels: Tensor, trace: Trace | None = None
) -> Tensor:
    """Logits (B, C) without compression; a `trace` gets what the parts beside the head need."""
    if head.is_ragged:
        trace = trace or Trace()
        return run(tail, head(pixels, trace)[0], trace.counts)
    tokens = tail(head(pixels, *([trace] if trace else []))[0])
    return tokens if head.end is None else head.end(tokens)


@torch.no_grad()
def predict(head: Head, tail: Tail, pixels: Tensor, precision: Precision = FP32) -> Tensor:
    """Logits (B, C) in fp32, without compression or graph, as in evaluation."""
    with precision.forward(pixels):
        return joined(head, tail, pixels).float()


@torch.no_grad()
def predict_by_exit(
    head: Head,
    tail: Tail,
    pixels: Tensor,
    precision: Precision = FP32,
    private: Sequence[Exits] = (),
) -> list[Tensor]:
    """Return the same, and after it the logits (B, C) of each exit, from the image on.

    `private` are the exits of some clients, which stand in the place of those beside the head.
    """
    own, behind = exits_of(head), exits_of(tail)
    before = private or ([own] if own else [])
    trace = Trace() if before else None
    with precision.forward(pixels):
        found = joined(head, partial(behind.with_tail, tail) if behind else tail, pixels, trace)
        logits, *later = found.float().unbind(dim=1) if behind else [found.float()]
        sooner = [one for exits in before for one in exits.logits(trace)] if trace else []
        return [logits, *[one.float() for one in sooner], *later]
