"""The server's tail in training: one joint step for the payloads of one or more clients."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from fl_split.codecs import Codec
from fl_split.flat import Flat
from fl_split.optimizers import Optimizer
from fl_split.payload import Payload
from fl_split.step import Place, cut_gradients
from fl_split.vit import Tail

MAX_ROWS = 256
"""Rows that run through the tail at once; larger joins only fall out of the cache."""


class TrainedTail:
    """A tail, its optimiser and the codec that feeds it."""

    def __init__(self, tail: Flat[Tail], optimizer: Optimizer, codec: Codec, seed: int) -> None:
        self.flat = tail
        self.spec = optimizer
        self.optimizer = optimizer.build(tail.vector)
        self.codec = codec
        self.seed = seed
        self._copies: list[Flat[Tail]] = []

    def forks(self, count: int) -> list[TrainedTail]:
        """Return `count` copies with the same weights and fresh optimisers (SFLV1).

        The modules are made once and lent again in the next round.
        """
        while len(self._copies) < count:
            self._copies.append(Flat(copy.deepcopy(self.flat.module)))
        for flat in self._copies[:count]:
            flat.load(self.flat.vector.detach())
        return [
            TrainedTail(flat, self.spec, self.codec, self.seed) for flat in self._copies[:count]
        ]

    def step(
        self,
        payloads: Mapping[int, Payload],
        weights: Mapping[int, float],
        server_round: int,
        step: int,
    ) -> tuple[dict[int, float], dict[int, Payload]]:
        """Take one optimiser step on sum_k weights[k] loss_k; return losses and cut gradients.

        Clients whose payloads have the same number of tokens run as one batch, in the
        order of `payloads`, at most MAX_ROWS rows at once; gradients add up over batches.
        """
        self.flat.zero_grad()
        losses: dict[int, float] = {}
        gradients: dict[int, Payload] = {}
        for clients in _batches(payloads):
            place = Place(self.seed, server_round, clients[0], step)
            values, cuts = cut_gradients(
                self.flat.module,
                self.codec,
                [payloads[client] for client in clients],
                [weights[client] for client in clients],
                place,
            )
            losses.update(zip(clients, values, strict=True))
            gradients.update(zip(clients, cuts, strict=True))
        self.optimizer.step()
        return losses, gradients


def _batches(payloads: Mapping[int, Payload]) -> list[list[int]]:
    """Group clients by the shape of one row of their payload, then by MAX_ROWS."""
    groups: dict[tuple[tuple[int, ...], ...], list[list[int]]] = {}
    rows: dict[tuple[tuple[int, ...], ...], int] = {}
    for client, payload in payloads.items():
        shape = tuple(tuple(value.shape[1:]) for value in payload.values.values())
        size = max(len(value) for value in payload.values.values())
        if shape not in groups or rows[shape] + size > MAX_ROWS:
            groups.setdefault(shape, []).append([])
            rows[shape] = 0
        groups[shape][-1].append(client)
        rows[shape] += size
    return [clients for batches in groups.values() for clients in batches]
