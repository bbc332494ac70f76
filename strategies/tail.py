"""The server's tail in training: one joint step for the payloads of one or more clients."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from fl_split.codecs import Codec
from fl_split.flat import Flat
from fl_split.optimizers import Optimizer
from fl_split.payload import Payload
from fl_split.step import Arrival, Place, arrive, cut_gradients
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

    def arrive(self, payload: Payload) -> Arrival:
        """Decode and check a payload; raise ValueError if it cannot be trained on."""
        return arrive(self.flat.module, self.codec, payload)

    def step(
        self,
        arrivals: Mapping[int, Arrival],
        weights: Mapping[int, float],
        server_round: int,
        step: int,
    ) -> tuple[dict[int, float], dict[int, Payload]]:
        """Take one optimiser step on sum_k weights[k] loss_k; return losses and cut gradients.

        Clients whose payloads have the same number of tokens run as one batch, in the
        order of `arrivals`, at most MAX_ROWS rows at once; gradients add up over batches.
        """
        self.flat.zero_grad()
        losses: dict[int, float] = {}
        gradients: dict[int, Payload] = {}
        for clients in _batches(arrivals):
            place = Place(self.seed, server_round, clients[0], step)
            values, cuts = cut_gradients(
                self.flat.module,
                [arrivals[client] for client in clients],
                [weights[client] for client in clients],
                place,
            )
            losses.update(zip(clients, values, strict=True))
            gradients.update(zip(clients, cuts, strict=True))
        self.optimizer.step()
        return losses, gradients


def _batches(arrivals: Mapping[int, Arrival]) -> list[list[int]]:
    """Group clients by their number of tokens, then by MAX_ROWS."""
    groups: dict[int, list[list[int]]] = {}
    free: dict[int, int] = {}
    for client, arrival in arrivals.items():
        rows, tokens, _ = arrival.received.tokens.shape
        if free.get(tokens, 0) < rows:
            groups.setdefault(tokens, []).append([])
            free[tokens] = MAX_ROWS
        groups[tokens][-1].append(client)
        free[tokens] -= rows
    return [clients for batches in groups.values() for clients in batches]
