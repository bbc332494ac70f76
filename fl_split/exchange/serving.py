"""Payloads of several clients in one tail: which run together, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fl_split.codecs import Received
from fl_split.exchange.link import Arrival
from fl_split.models.beside import Beside
from fl_split.models.cut import Tail
from fl_split.ragged import padded, run

MAX_TOKENS = 8192
"""Tokens that run through the tail at once: larger joins only fall out of the cache."""


def batches(tail: Tail, arrivals: Mapping[int, Arrival]) -> list[list[int]]:
    """Return which clients run through `tail` as one batch, in the order of `arrivals`.

    They have the same number of tokens, or numbers that differ by row, at most MAX_TOKENS in all.
    Batch norm normalises every client's batch by itself, and experts have room for each by itself:
    it runs alone.
    """
    if tail.serves_alone:
        return [[client] for client in arrivals]
    groups: dict[int, list[list[int]]] = {}
    free: dict[int, int] = {}
    for client, arrival in arrivals.items():
        size = arrival.rows * arrival.tokens
        tokens = arrival.tokens if arrival.received.counts is None else 0
        if free.get(tokens, 0) < size:
            groups.setdefault(tokens, []).append([])
            free[tokens] = MAX_TOKENS
        groups[tokens][-1].append(client)
        free[tokens] -= size
    return [clients for found in groups.values() for clients in found]


def serving_flops(tail: Tail, arrivals: Mapping[int, Arrival], exits: Beside | None = None) -> int:
    """Operations of the tail's step on `arrivals`, with those of exits that learn."""
    counts = [count for one in arrivals.values() for count in one.counts]
    of_exits = exits.flops(len(counts)) if exits else 0
    return of_exits + sum(tail.row_flops(count)[1] for count in counts)


def through(tail: Callable[[Tensor], Tensor], received: Sequence[Received]) -> Tensor:
    """Return logits of the rows of all clients, (K, C); a middle returns tokens (K, T, D)."""
    if all(one.counts is None for one in received):
        tokens = [one.tokens for one in received]
        return tail(tokens[0] if len(tokens) == 1 else torch.cat(tokens))
    counts = [count for one in received for count in (one.counts,) if count is not None]
    return run(tail, padded([one.tokens for one in received]), torch.cat(counts))
