"""GAS (Yang and Liu, 2024, arXiv 2409.01251): asynchronous, with drawn smashed data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain
from dataclasses import field, replace
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from fl_split.codecs import Received
from fl_split.exchange.link import Arrival
from fl_split.exchange.protocol import Exchange
from fl_split.exchange.records import Weights
from fl_split.exchange.served import Served
from fl_split.exchange.serving import pooled
from fl_split.models.cut import Head
from fl_split.recipe.loss import CrossEntropy
from fl_split.seeds import generator
from fl_split.specs import STRICT
from strategies.server.aggregation import Update
from strategies.server.round import Round
from strategies.server.strategy import Strategy

SEEN, MEANS, VARIANCES, STEPS = "class-weights", "class-means", "class-variances", "tail-steps"
"""Names of what the server keeps among the global weights."""

RARE = 1e-12
"""Added to the share of a class, so that its logarithm is finite where a client has none."""


@plain(frozen=True, eq=False)
class AdjustedCrossEntropy(CrossEntropy):
    """Minimise cross-entropy of logits to which `offset` (C,) is added; tell the plain one."""

    offset: Tensor | float = 0.0

    def joint(
        self, logits: Tensor, received: Sequence[Received], weights: Sequence[float]
    ) -> tuple[Tensor, list[float]]:
        """Return sum_k weights[k] adjusted loss_k, and every plain loss_k."""
        adjusted, _ = super().joint(logits + self.offset, received, weights)
        return adjusted, super().joint(logits.detach(), received, weights)[1]


class ClassStatistics(NamedTuple):
    """Weighted moments of smashed data by class: weights (C,), means and variances (C, N D)."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def updated(self, rows: Tensor, labels: Tensor, counts: Tensor) -> ClassStatistics:
        """Return the moments with those of more rows (n, N D), which count by `counts` (n,)."""
        found = ClassStatistics(*(one.clone() for one in self))
        for label in labels.unique().tolist():
            own = labels == label
            values, share = rows[own], (counts[own] / counts[own].sum())[:, None]
            mean = (share * values).sum(0)
            variance = (share * (values - mean).square()).sum(0)
            before, more = self.weights[label], counts[own].sum()
            new = more / (before + more)
            whole = self.means[label].lerp(mean, new)
            spread = self.variances[label] + (whole - self.means[label]).square()
            found.weights[label] = before + more
            found.means[label] = whole
            found.variances[label] = spread.lerp(variance + (whole - mean).square(), new)
        return found

    def drawn(self, counts: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return rows (m, N D), so many of each class as `counts` (C,) says, and their labels."""
        labels = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        noise = torch.randn(len(labels), self.means.shape[1], generator=draw, device="cpu")
        deviations = self.variances.sqrt()[labels]
        return self.means[labels] + deviations * noise.to(deviations.device), labels


@plain
class Server:
    """What the server keeps in a round: moments, steps of the tail, and a buffer of payloads.

    `earlier` are the steps of the tail in the rounds before. Of a payload the buffer has what it
    became, its samples, and how much its rows count in the moments.
    """

    statistics: ClassStatistics | None = None
    earlier: int = 0
    steps: int = 0
    buffer: list[tuple[Received, int, float]] = field(default_factory=list)

    @classmethod
    def of(cls, kept: Mapping[str, Weights], device: torch.device) -> Server:
        """Read what a round before has left."""
        if SEEN not in kept:
            return cls()
        found = {name: torch.from_numpy(one.numpy().copy()) for name, one in kept.items()}
        seen = found[SEEN].to(device)
        moments = (found[name].to(device).view(len(seen), -1) for name in (MEANS, VARIANCES))
        return cls(ClassStatistics(seen, *moments), int(found[STEPS]))

    def kept(self) -> dict[str, Weights]:
        """Return what the next round is to know."""
        if self.statistics is None:
            return {}
        steps = torch.tensor([self.earlier + self.steps], dtype=torch.float32, device="cpu")
        vectors = dict(zip((SEEN, MEANS, VARIANCES, STEPS), (*self.statistics, steps), strict=True))
        return {name: Weights.of(np.asarray(one.flatten().cpu())) for name, one in vectors.items()}


@dataclass(frozen=True, config=STRICT)
class GAS(Strategy):
    """Clients go on by themselves; the tail learns from a buffer, filled up with drawn rows.

    Payloads are served one by one, as they arrive in virtual time. At once the client gets the cut
    gradient of CE(tail(z) + `adjustment` log p_k, y), p_k its shares of classes; the tail does not
    step. Payloads gather in a buffer. When there are as many as clients take part, the server
    updates weighted means and variances of z by class, fills up every class to `batch_size` rows
    by draws from N(mean, variance), and the tail takes one step on the mean loss of all rows. A
    fast client may be in a buffer several times, a slow one not at all. Heads are averaged when
    all have ended, each counting alike. Take `local_steps`, as the authors do.

    After the authors' code. It draws with the covariance of all N D values, which takes 600 MB a
    class for a ViT-Tiny, and says to draw each value by itself where activations are large: so
    here. A row counts in the moments by 1 + the steps that its head has behind it (in their code
    newer rows count still more), and for the class that has most of its label, if that is mixed.
    Rows are drawn from when on every class that somebody holds has been seen. A client that has
    ended is not replaced by another one before the round ends, so a round takes as long as its
    slowest client. At the end of a round the tail steps on what is left in the buffer.

    The server computes every payload twice, and what is drawn; it keeps 2 C N D numbers and the
    buffer. `train_loss` is without adjustment.

    Parameters
    ----------
    generate : bool
        Whether the buffer is filled up.
    adjustment : float
        Of logits by the client's labels; 0 is none.
    """

    generate: bool = True
    adjustment: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0

    needs_labels = True
    works_in_u_shape = False
    serves_in_turn = True
    needs_clock = True
    trains_end_to_end = False  # heads follow adjusted logits, the tail what is drawn

    def exchange(self, head: Head) -> Exchange:
        """Refuse heads that send different numbers of tokens: moments are value by value."""
        if head.varies or head.is_ragged:
            raise ValueError("gas keeps moments value by value; tokens must be as many each time")
        return super().exchange(head)

    def train_round(self, round: Round) -> list[Update]:
        """Answer payloads as they arrive; step the tail each time the buffer is full."""
        server = Server.of(round.weights, round.training.tail.vector.device)
        round.begin(round.clients, head=round.head)
        while (client := round.earliest(round.clients)) is not None:
            if arrival := round.payload(client):
                self._answer(round, server, client, arrival)
            if len(server.buffer) == len(round.clients):
                self._learn(round, server)
        if server.buffer:
            self._learn(round, server)
        round.kept |= server.kept()
        return round.updates(lambda client: 1)

    def _answer(self, round: Round, server: Server, client: int, arrival: Arrival) -> None:
        """Let the head of a client learn, and put its payload into the buffer."""
        at, exchange = round.at(client), round.exchange
        if self.adjustment:
            held = torch.tensor(round.labels[client], dtype=torch.float64, device="cpu")
            prior = (held / held.sum()) ** self.adjustment + RARE
            offset = prior.log().float().to(arrival.received.tokens.device)
            loss = AdjustedCrossEntropy(exchange.loss.label_smoothing, offset)
            exchange = replace(exchange, loss=loss)
        tail, graphs = round.tail.flat, round.training.graphs
        served = exchange.serve(tail, {client: arrival}, {client: 1.0}, at, graphs)
        assert isinstance(served, Served)  # no U-shape
        round.answer(served, [client])
        if client in served.cuts:
            age = 1.0 + server.earlier + at.step
            server.buffer.append((arrival.received, round.batch_samples[client], age))

    def _learn(self, round: Round, server: Server) -> None:
        """Update moments, fill up the buffer, and step the tail on it."""
        received = {number: one for number, (one, _, _) in enumerate(server.buffer)}
        samples = {number: count for number, (_, count, _) in enumerate(server.buffer)}
        pool = pooled(received, samples, round.tail.flat.module.num_classes)
        if self.generate:
            pool = self._filled(round, server, pool)
        round.train_tail_alone(pool, len(server.buffer))
        server.steps, server.buffer = server.steps + 1, []

    def _filled(self, round: Round, server: Server, pool: Received) -> Received:
        """Take a pool into the moments; return it with what is drawn by class."""
        rows, classes = pool.tokens.flatten(1), round.tail.flat.module.num_classes
        labels = pool.targets if pool.targets.dim() == 1 else pool.targets.argmax(1)
        ages = [rows.new_full((len(one.tokens),), age) for one, _, age in server.buffer]
        nothing = rows.new_zeros(classes, rows.shape[1])
        known = server.statistics or ClassStatistics(rows.new_zeros(classes), nothing, nothing)
        server.statistics = known.updated(rows, labels, torch.cat(ages))
        counts = zip(*round.labels.values(), strict=True)
        held = torch.tensor([sum(one) > 0 for one in counts], device=rows.device)
        if bool((server.statistics.weights[held] == 0).any()):
            return pool
        there = torch.bincount(labels, minlength=classes)
        missing = (round.training.batch_size - there).clamp(min=0) * held
        draw = generator(round.seed, "generated", round.number, server.steps)
        drawn, of_class = server.statistics.drawn(missing, draw)
        tokens = drawn.view(len(drawn), *pool.tokens.shape[1:])
        targets = of_class if pool.targets.dim() == 1 else functional.one_hot(of_class, classes)
        assert pool.weights is not None  # of a pool there always are
        return Received(
            torch.cat([pool.tokens, tokens]),
            torch.cat([pool.targets, targets.to(pool.targets.dtype)]),
            torch.cat([pool.weights, pool.weights.new_ones(len(drawn))]),
        )
