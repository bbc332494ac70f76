"""Payloads of several clients in one tail: which run together, what that costs, and pools."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fl_split.codecs import Received
from fl_split.exchange.link import Arrival
from fl_split.models.beside import Beside
from fl_split.models.cut import Tail
from fl_split.ragged import padded, run
from fl_split.recipe.loss import shares_of_rows

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
    counts = [count for one in arrivals.values() for count in one.received.lengths.tolist()]
    of_exits = exits.flops(len(counts)) if exits else 0
    return of_exits + sum(tail.row_flops(count)[1] for count in counts)


def through(tail: Callable[[Tensor], Tensor], received: Sequence[Received]) -> Tensor:
    """Return logits of the rows of all clients, (K, C); a middle returns tokens (K, T, D)."""
    if all(one.counts is None for one in received):
        tokens = [one.tokens for one in received]
        return tail(tokens[0] if len(tokens) == 1 else torch.cat(tokens))
    counts = torch.cat([one.lengths for one in received])
    return run(tail, padded([one.tokens for one in received]), counts)


def pooled(
    received: Mapping[int, Received], weights: Mapping[int, float], classes: int
) -> Received:
    """Return the rows of all clients as if they were of one, without gradient; same order.

    A row counts by its client's weight times its share in the client's loss: the mean loss of
    the pool is sum_k weights[k] loss_k / sum_k weights[k].
    """
    parts = [*received.values()]
    lengths = {part.tokens.shape[1] for part in parts}
    counts = None
    if len(lengths) > 1 or any(part.counts is not None for part in parts):
        counts = torch.cat([part.lengths for part in parts])
    targets = [part.targets for part in parts]
    if len({one.dim() for one in targets}) > 1:
        targets = [
            one if one.dim() > 1 else functional.one_hot(one, classes).float() for one in targets
        ]
    rows = [weights[client] * shares_of_rows(part) for client, part in received.items()]
    tokens = padded([part.tokens.detach() for part in parts])
    return Received(tokens, torch.cat(targets), torch.cat(rows), counts)


def shuffled_parts(rows: int, size: int, epochs: int, draw: torch.Generator) -> Iterator[Tensor]:
    """Yield the mini-batches of `size` rows of some passes over a pool, each shuffled anew."""
    for _ in range(epochs):
        yield from torch.randperm(rows, generator=draw, device="cpu").split(size)


def of_rows(pool: Received, rows: Tensor) -> Received:
    """Return some rows of a pool, padded no more than they need."""
    at = rows.to(pool.tokens.device)
    tokens, counts = pool.tokens[at], None if pool.counts is None else pool.counts[at]
    if counts is not None:
        tokens = tokens[:, : int(counts.max())]
    weights = None if pool.weights is None else pool.weights[at]
    return Received(tokens, pool.targets[at], weights, counts)
