"""Rows of smashed data that the server keeps of clients, from round to round and in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fl_split.accelerators import CPU
from fl_split.codecs import Received
from fl_split.exchange.records import Weights
from fl_split.exchange.serving import pooled

TOKENS, TARGETS, WEIGHTS, COUNTS = "kept-tokens", "kept-targets", "kept-weights", "kept-counts"
"""Names of what is kept of a client among the global weights, with its number."""


def of_client(name: str, client: int) -> str:
    """Return the name of what is kept of a client."""
    return f"{name}-{client}"


def packed(values: Tensor) -> Weights:
    """Return numbers as they are kept, in fp32."""
    return Weights.of(values.float().cpu().numpy())


def keep_rows(kept: dict[str, Weights], client: int, rows: Received) -> None:
    """Put rows of a client in the place of those that are kept of it."""
    found = (rows.tokens, rows.targets, rows.weights, rows.counts)
    for name, values in zip((TOKENS, TARGETS, WEIGHTS, COUNTS), found, strict=True):
        kept.pop(of_client(name, client), None)
        if values is not None:
            kept[of_client(name, client)] = packed(values)


def rows_of(
    kept: Mapping[str, Weights], client: int, device: torch.device = CPU
) -> Received | None:
    """Return the rows that are kept of a client, if there are some."""
    found = dict[str, Tensor]()
    for name in (TOKENS, TARGETS, WEIGHTS, COUNTS):
        if (one := kept.get(of_client(name, client))) is not None:
            found[name] = torch.from_numpy(one.numpy().copy()).to(device)
    if TOKENS not in found:
        return None
    targets, counts = found[TARGETS], found.get(COUNTS)
    if targets.dim() == 1:
        targets = targets.long()
    return Received(
        found[TOKENS], targets, found.get(WEIGHTS), None if counts is None else counts.long()
    )


def pool_of(kept: Mapping[str, Weights], classes: int) -> Received | None:
    """Return all rows that are kept, client after client, if there are some; weights as kept."""
    start, received = f"{TOKENS}-", dict[int, Received]()
    for client in sorted(int(name.removeprefix(start)) for name in kept if name.startswith(start)):
        if rows := rows_of(kept, client):
            received[client] = rows
    whole = {client: float(_weights(rows).sum()) for client, rows in received.items()}
    return pooled(received, whole, classes) if received else None


def _weights(rows: Received) -> Tensor:
    return torch.ones(len(rows.tokens), device=CPU) if rows.weights is None else rows.weights
