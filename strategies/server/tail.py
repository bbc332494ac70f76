"""The server's tail in training: steps on the payloads of one or more clients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fl_split.codecs import Codec
from fl_split.exchange.split import Arrival, Place, arrive, cut_gradients
from fl_split.flat import Flat, copy_trained, descend
from fl_split.models.cut import Tail
from fl_split.models.flops import tail_step
from fl_split.optimizers import Optimizer
from fl_split.payload import Payload

MAX_TOKENS = 8192
"""Tokens that run through the tail at once: larger joins only fall out of the cache."""


@dataclass(frozen=True)
class Served:
    """What the tail makes of payloads: losses and cut gradients by client, its own gradient.

    `flops` is what it took; `failed` are clients whose loss was not finite, left out of all.
    """

    losses: dict[int, float]
    cuts: dict[int, Payload]
    gradient: Tensor
    flops: int
    failed: Sequence[int] = ()


class TrainedTail:
    """A tail, its optimiser and the codec that feeds it.

    Attributes
    ----------
    restarts : bool
        Whether the optimiser starts afresh with every batch, as in the official SplitFed scripts.
    """

    def __init__(self, tail: Flat[Tail], optimizer: Optimizer, codec: Codec, seed: int) -> None:
        self.flat = tail
        self.spec = optimizer
        self.optimizer = optimizer.build(tail.vector)
        self.codec = codec
        self.seed = seed
        self.restarts = False
        self._copies: list[Flat[Tail]] = []

    def forks(self, count: int) -> list[TrainedTail]:
        """Return `count` copies with the same weights and fresh optimisers (SFLV1).

        The modules are made once and lent again in the next round.
        """
        while len(self._copies) < count:
            self._copies.append(Flat(copy_trained(self.flat.module)))
        for flat in self._copies[:count]:
            flat.load(self.flat.vector.detach())
        forks = [
            TrainedTail(flat, self.spec, self.codec, self.seed) for flat in self._copies[:count]
        ]
        for fork in forks:
            fork.restarts = self.restarts
        return forks

    def arrive(self, payload: Payload) -> Arrival:
        """Decode and check a payload; raise ValueError if it cannot be trained on."""
        return arrive(self.flat.module, self.codec, payload)

    def serve(
        self,
        arrivals: Mapping[int, Arrival],
        weights: Mapping[int, float],
        server_round: int,
        step: int,
    ) -> Served:
        """Differentiate sum_k weights[k] loss_k; changes nothing, so threads may share a tail.

        Clients whose payloads have the same number of tokens run as one batch, in the
        order of `arrivals`, at most MAX_TOKENS tokens at once; gradients add up over batches.
        Batch norm in the tail normalises every client's batch by itself: each runs alone.
        """
        losses: dict[int, float] = {}
        cuts: dict[int, Payload] = {}
        gradients = []
        for clients in self.batches(arrivals):
            place = Place(self.seed, server_round, clients[0], step)
            values, payloads, gradient = cut_gradients(
                self.flat,
                [arrivals[client] for client in clients],
                [weights[client] for client in clients],
                place,
            )
            losses.update(zip(clients, values, strict=True))
            cuts.update(zip(clients, payloads, strict=True))
            gradients.append(gradient)
        failed = [client for client, loss in losses.items() if not math.isfinite(loss)]
        if failed:  # which spoils the sum: once more without
            rest = {k: arrival for k, arrival in arrivals.items() if k not in failed}
            if not rest:
                return Served({}, {}, torch.zeros_like(self.flat.vector), 0, failed)
            return replace(self.serve(rest, weights, server_round, step), failed=failed)
        return Served(losses, cuts, total(gradients), self.flops(arrivals))

    def batches(self, arrivals: Mapping[int, Arrival]) -> list[list[int]]:
        """Return which clients run as one batch; see :meth:`serve`."""
        alone = self.flat.module.has_batch_norm
        return [[client] for client in arrivals] if alone else _batches(arrivals)

    def flops(self, arrivals: Mapping[int, Arrival]) -> int:
        """Operations of a step on `arrivals`."""
        rows: dict[int, int] = {}
        for arrival in arrivals.values():
            count, tokens, _ = arrival.received.tokens.shape
            rows[tokens] = rows.get(tokens, 0) + count
        return sum(tail_step(self.flat.module, count, tokens) for tokens, count in rows.items())

    def descend(self, gradient: Tensor) -> None:
        """Take one step of the optimiser."""
        if self.restarts:
            self.optimizer = self.spec.build(self.flat.vector)
        descend(self.optimizer, self.flat, gradient)

    def step(self, client: int, arrival: Arrival, server_round: int, step: int) -> Served:
        """Serve one client and step, unless its loss is not finite."""
        served = self.serve({client: arrival}, {client: 1.0}, server_round, step)
        if not served.failed:
            self.descend(served.gradient)
        return served


def total(gradients: Sequence[Tensor]) -> Tensor:
    """Add up in the order given, in place of the first."""
    first, *others = gradients
    for gradient in others:
        first.add_(gradient)
    return first


def _batches(arrivals: Mapping[int, Arrival]) -> list[list[int]]:
    """Group clients by their number of tokens, then by MAX_TOKENS."""
    groups: dict[int, list[list[int]]] = {}
    free: dict[int, int] = {}
    for client, arrival in arrivals.items():
        rows, tokens, _ = arrival.received.tokens.shape
        if free.get(tokens, 0) < rows * tokens:
            groups.setdefault(tokens, []).append([])
            free[tokens] = MAX_TOKENS
        groups[tokens][-1].append(client)
        free[tokens] -= rows * tokens
    return [clients for batches in groups.values() for clients in batches]
