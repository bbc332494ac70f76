"""MOON (Li et al., CVPR 2021, arXiv 2103.16257): model-contrastive federated learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass as plain
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from fl_split.codecs import Received
from fl_split.exchange.local_round import LocalRound
from fl_split.exchange.protocol import Batch, Exchange, Flops, Step
from fl_split.exchange.records import HEAD, TAIL, Number, Weights
from fl_split.exchange.split import randomness
from fl_split.exchange.whole import Whole
from fl_split.models.beside import Trace
from fl_split.models.costs import whole_forward_flops
from fl_split.models.cut import Head, Tail
from fl_split.models.parts import EXITS_ALONE
from fl_split.recipe.loss import CrossEntropy
from fl_split.specs import STRICT
from strategies.fedavg import FedAvg

PREVIOUS = {HEAD: "previous-head", TAIL: "previous-tail"}
"""Names under which a client remembers its model at the end of its last round."""


def contrast(now: Tensor, towards: Tensor, away: Tensor, temperature: float) -> Tensor:
    """Return the mean over rows of -log(e^p / (e^p + e^q)), of representations (B, R).

    p and q are cosines of `now` with `towards` and with `away`, divided by the temperature.
    """
    cosines = [functional.cosine_similarity(now, other, dim=1) for other in (towards, away)]
    logits = torch.stack(cosines, dim=1) / temperature
    first = torch.zeros(len(now), dtype=torch.int64, device=now.device)
    return functional.cross_entropy(logits, first)


@plain(frozen=True)
class Contrast(CrossEntropy):
    """Cross-entropy, plus mu times the contrast of the representation that was just `seen`.

    `seen` is empty while exits of the head are asked, before the classifier is: they get none.
    """

    seen: tuple[list[Tensor], ...] = ()
    towards: Tensor | None = None
    away: Tensor | None = None
    mu: float = 0.0
    temperature: float = 1.0

    def of(self, logits: Tensor, received: Received) -> Tensor:
        """Return the loss of one client."""
        value = super().of(logits, received)
        if not all(self.seen):
            return value
        assert self.towards is not None and self.away is not None
        term = contrast(joined(self.seen), self.towards, self.away, self.temperature)
        return value + self.mu * term


@contextmanager
def watched(head: Head, tail: Tail) -> Iterator[tuple[list[Tensor], ...]]:
    """Note in the block what comes into the classifiers, one list for each."""
    layers = (head.end or tail).classifying_layers()
    seen: tuple[list[Tensor], ...] = tuple([] for _ in layers)
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, into=into: into.append(inputs[0]))
        for layer, into in zip(layers, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def joined(seen: tuple[list[Tensor], ...]) -> Tensor:
    """Return the representation (B, R): what last came into the classifiers."""
    return torch.cat([into[-1].flatten(1).float() for into in seen], dim=1)


class ContrastedRound(LocalRound):
    """Local training whose representations move from the previous local model to the global."""

    exchange: Contrasted

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._known: dict[int, int] = {}

    def step(self, batch: Batch) -> Step:
        """Return loss and gradients of a batch, and the operations of all passes."""
        at, exchange, memory = self.client.at, self.exchange, self.client.memory
        previous = {name: memory[key] for name, key in PREVIOUS.items() if key in memory}
        if not previous or exchange.phases.trains(at.round) == EXITS_ALONE:
            return self._told(super().step(batch), batch, 0)
        head, tail = self.halves[HEAD], self.halves[TAIL]
        now = {name: half.vector.detach().clone() for name, half in self.halves.items()}
        (towards, first), (away, second) = (
            self._represented(weights, batch) for weights in (self.starts, previous)
        )
        self._load(now)
        with watched(head.module, tail.module) as seen:
            settings = exchange.loss.label_smoothing, seen, towards, away
            loss = Contrast(*settings, exchange.mu, exchange.temperature)
            found = replace(exchange, loss=loss).step(head, tail, self.client.link, batch, at)
        return self._told(found, batch, first + second)

    def end(self, steps: int) -> tuple[Mapping[str, Weights], Mapping[str, Number]]:
        """Keep the model."""
        del steps
        for name, half in self.halves.items():
            self.keep(PREVIOUS[name], half.vector.detach().clone())
        return {}, {}

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        for name, half in self.halves.items():
            half.load(weights[name])

    @torch.no_grad()
    def _represented(self, weights: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, int]:
        """Return what another model makes of a batch (B, R), by the same draws; and operations."""
        self._load(weights)
        head, tail = self.halves[HEAD].module, self.halves[TAIL].module
        at, precision, trace = self.client.at, self.exchange.precision, Trace()
        with watched(head, tail) as seen, precision.forward(batch.pixels):
            with randomness(head, "head", at):
                tokens = head(batch.pixels, *([trace] if head.varies else []))[0].float()
            with randomness(tail, "tail", at):
                tokens = tail(tokens).float()
            if head.end is not None:
                with randomness(head.end, "end", at):
                    head.end(tokens)
        return joined(seen), len(batch.labels) * self._forward_flops(int(trace.kept))

    def _told(self, found: Step, batch: Batch, beside: int) -> Step:
        """Return a step that tells its operations and those `beside`: not all clients have them."""
        own = len(batch.labels) * self._step_flops if found.work is None else found.work
        return found._replace(work=own + beside)

    @cached_property
    def _step_flops(self) -> int:
        """Operations of a step on one image, without the passes of other models."""
        head, tail = self.halves[HEAD].module, self.halves[TAIL].module
        return Whole.flops_of_round(self.exchange, self.client.at.round, head, tail).total

    def _forward_flops(self, kept: int) -> int:
        """Operations of such a pass on one image, of which so many patches were kept if any go."""
        head, tail = self.halves[HEAD].module, self.halves[TAIL].module
        if kept not in self._known:
            like = head.keeping(kept) if head.varies else head
            self._known[kept] = whole_forward_flops(like, tail, 1)
        return self._known[kept]


@plain(frozen=True)
class Contrasted(Whole):
    """Training of whole models with a contrast to two others."""

    mu: float = 0.0
    temperature: float = 1.0
    local = ContrastedRound
    copies_kept = 3  # global and previous model, and the own one while these compute

    def prepare(self, head: Head, tail: Tail, seed: int) -> None:
        """Raise ValueError for models that have no representation, or one that varies."""
        super().prepare(head, tail, seed)
        if not (head.end or tail).classifying_layers():
            raise ValueError(
                "strategy: moon contrasts what comes into a linear classifier, and there is none"
            )
        if head.is_ragged:
            raise ValueError(
                "strategy: moon needs as many tokens of all images of a batch; take tokens with "
                "rate_mode='exact_topk' and trained_at='any' or 'rate'"
            )

    def flops_of_round(self, number: int, head: Head, tail: Tail) -> Flops:
        """Return operations on one image, of a client that has trained in the round before."""
        found = super().flops_of_round(number, head, tail)
        if number == 1 or self.phases.trains(number) == EXITS_ALONE:
            return found
        return Flops(found.forward + 2 * whole_forward_flops(head, tail, 1), found.backward)


@dataclass(frozen=True, config=STRICT)
class MOON(FedAvg):
    """FedAvg whose clients add mu times a model-contrastive loss.

    The representation z of an image, what comes into the classifier (of a ViT, CLS after the
    final norm; of a CNN, pooled features), is drawn to that of the global model and away from
    that of the client's own model at the end of its last round, by their cosines. The projection
    head that the paper puts before the classifier is left out. A client that has no last round
    trains as in `fedavg`: with the global model in its place the gradient would be zero.

    Both other models run forward only: a step costs two more forward passes, which count, and
    no more activation memory; the client keeps a model. Dropout draws the same in all three.
    The training loss includes the term. Bytes are those of `fedavg`.

    A full-model baseline: z is behind the tail. On a server it would need the smashed data of
    three heads for each image: three times what is sent up.

    Parameters
    ----------
    mu : float
        0 is FedAvg.
    temperature : float
        What cosines are divided by.
    """

    mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5

    def exchange(self, head: Head) -> Exchange:
        """Clients train whole models, contrasted with two others."""
        return Contrasted(mu=self.mu, temperature=self.temperature) if self.mu else Whole()
