"""How many clients' heads run as one on a GPU: computed before a run, never tried by a clock."""

from __future__ import annotations

import torch

from fl_split.exchange.protocol import Exchange
from fl_split.models.cut import Head

SHARE = 4
"""Of the free memory a stack may take 1 / SHARE: kept graphs and the tail need some, too."""

MOST = 128
"""Most clients in a stack: by then a GPU has enough to do."""

FLOATS = 4
"""Copies of a head's weights in a stack: they themselves, stacked, and the gradients of both."""


def can_stack(exchange: Exchange, head: Head) -> bool:
    """Tell whether heads can run as one at all."""
    return exchange.can_stack and head.can_stack


def member_bytes(head: Head, batch_size: int) -> int:
    """Estimate what one client takes in a stack: activations of a batch, and copies of weights."""
    weights = sum(parameter.numel() for parameter in head.parameters())
    return head.activation_bytes(batch_size) + 4 * FLOATS * weights


def planned(free: int, member: int, clients: int) -> int:
    """Return the largest power of two of clients that fits, at least 1 and at most `clients`.

    `free` is the free memory of the GPU and `member` what one client takes, in bytes. A power of
    two, so that a few bytes more or less give the same size, and with it the same bits.
    """
    fits = max(1, min(free // SHARE // max(1, member), clients, MOST))
    return int(1 << (fits.bit_length() - 1))


def of(
    device: torch.device,
    exchange: Exchange,
    head: Head,
    batch_size: int,
    clients: int,
    asked: int = 0,
) -> int:
    """Return the size of stacks on `device`, `asked` if it is not 0.

    0 leaves it to trials on a CPU; a GPU other than CUDA's, whose free memory nobody tells, runs
    each head alone.
    """
    if asked or device.type == "cpu":
        return asked
    if device.type != "cuda" or not can_stack(exchange, head):
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    return planned(free, member_bytes(head, batch_size), clients)
