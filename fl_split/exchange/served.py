"""What a tail makes of payloads: at once, or when their clients have answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fl_split.exchange.link import Link
from fl_split.exchange.records import Record
from fl_split.payload import Payload


@dataclass(frozen=True)
class Served:
    """What the tail made of payloads.

    Attributes
    ----------
    losses, cuts : dict
        Losses and cut gradients, by client.
    gradient, flops : Tensor, int
        That of the tail's weights; operations of the tail.
    failed : sequence of int
        Clients whose loss was not finite; they are left out of all else.
    """

    losses: dict[int, float]
    cuts: dict[int, Payload]
    gradient: Tensor
    flops: int
    failed: Sequence[int] = ()


@dataclass(frozen=True)
class HalfServed:
    """Payloads that wait for answers of their clients before they are served.

    Attributes
    ----------
    action, outputs : str, dict[int, Payload]
        Action of the records that ask the clients, and what is sent to each.
    read, resume : Callable
        Reads the answer of a client, or raises ValueError; turns answers, by client, into what is
        served, called once, also without any.
    flops : dict[int, int]
        Operations of the tail so far, by client; those of :class:`Served` include them.
    failed : sequence of int
        Clients whose output was not finite; they are left out of all else.
    """

    action: str
    outputs: dict[int, Payload]
    read: Callable[[int, Link, Record], Any]
    resume: Callable[[Mapping[int, Any]], Served]
    flops: dict[int, int]
    failed: Sequence[int] = ()
