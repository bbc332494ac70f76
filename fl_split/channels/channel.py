"""The contract of a channel, and the laws of chance that several channels follow.

A channel gets a message as bytes and what its codec says about them: which of its tensors are
*exposed*, so that they may come with wrong numbers. All else is *side information*: header,
shapes, labels, indices, scales, codebooks, masks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_split.codecs import Codec
from fl_split.payload import Extent, Payload, extents

MOST_TRIES = 1000
"""Tries that something may need on average until it arrives."""


@dataclass(frozen=True)
class Crossing:
    """What becomes of a message on its way, and what the way takes.

    Attributes
    ----------
    data : bytes or None
        What arrives; None if the message is lost.
    size : int
        Bytes on the way, repetitions and checksums included.
    resent : int
        Those of `size` that only repeat others.
    uses : int
        Uses of a complex channel by numbers that are sent as they are.
    damaged, zeroed : int
        Numbers that arrive other than they were sent; those of them that the receiver set to
        zero, or to what stands for zero.
    gone : dict
        By tensor of the message, which numbers the receiver has set to something: they say
        nothing of what was sent, so that no gradient goes back to them.
    is_spoilt : bool
        Whether what arrives may be no payload any more; the receiver then takes it for lost.
    state : dict
        What the receiver measures of the way, for codecs that ask: "snr_db", the signal-to-noise
        ratio of each row of the values (B,), or "ber", the rate of bit errors (). Empty if there
        is nothing to know.
    """

    data: bytes | memoryview | None
    size: int
    resent: int = 0
    uses: int = 0
    damaged: int = 0
    zeroed: int = 0
    is_spoilt: bool = False
    gone: dict[str, Tensor] = field(default_factory=dict, compare=False)
    state: dict[str, Tensor] = field(default_factory=dict, compare=False)


class Channel(ABC):
    """What a link does to what is on it, one way; a frozen dataclass whose ``repr`` is its spec.

    Attributes
    ----------
    is_perfect : bool
        Whether it does nothing at all.
    largest : float
        Magnitude of a value from which on the receiver takes it for an error.
    """

    is_perfect: ClassVar[bool] = False
    largest: float = math.inf

    @property
    def asks_snr(self) -> bool:
        """Whether the system says how much noise there is, by client and round."""
        return False

    def with_snr(self, snr_db: float) -> Channel:
        """Return the channel with this signal-to-noise ratio, in dB; for those that ask."""
        return self

    @abstractmethod
    def cross(self, data: bytes, codec: Codec, generator: torch.Generator) -> Crossing:
        """Return what arrives of `data`, which `codec` has packed.

        Every random choice comes from `generator`. What arrives has the names and shapes of
        what was sent, and finite values, unless it is lost or spoilt.
        """

    def check(self, codec: Codec) -> None:  # noqa: B027  (most carry all)
        """Raise ValueError if what `codec` packs cannot be sent over this channel."""

    def can_lose(self, codec: Codec) -> bool:
        """Tell whether a whole message of `codec` may be lost."""
        return False


def exposed(data: bytes, codec: Codec) -> list[Extent]:
    """Return where in `data` wrong numbers may arrive."""
    if codec.exposed is None:
        return []
    names = tuple(codec.exposed)
    found = (one for one in extents(data) if one.stop > one.start)
    return [one for one in found if one.is_value or one.name.startswith(names)]


def hits(count: int, chance: float, generator: torch.Generator) -> NDArray[np.int64]:
    """Return which of `count` things, in order, are hit, each by itself with `chance`.

    Gaps between hits are geometric, so that rare hits cost little; nothing is drawn for 0.
    """
    if not count or chance <= 0:
        return np.empty(0, np.int64)
    found, last = [], -1
    several = int(count * chance + 4 * math.sqrt(count * chance)) + 16
    while last < count:
        places = last + tries(np.full(several, 1 - chance), generator).cumsum()
        found.append(places)
        last = int(places[-1])
    places = np.concatenate(found)
    return places[places < count]


def tries(failure: NDArray[np.float64], generator: torch.Generator) -> NDArray[np.int64]:
    """Return how many tries each thing takes whose single try fails with a chance below 1."""
    if not failure.any():
        return np.ones(failure.shape, np.int64)
    draws = 1 - torch.rand(len(failure), generator=generator, dtype=torch.float64).numpy()
    with np.errstate(divide="ignore"):
        more = np.log(draws) / np.log(failure)  # of no failure: 0
    return 1 + np.minimum(more, 2.0**40).astype(np.int64)


def pieces(size: int, length: int) -> NDArray[np.int64]:
    """Return the sizes of the pieces, all but the last of `length`, that `size` is cut into."""
    starts = np.arange(0, size, length)
    return np.minimum(length, size - starts)


def clean(payload: Payload, largest: float = math.inf) -> dict[str, Tensor]:
    """Set values to zero that are not finite or of magnitude above `largest`; return which."""
    gone = {}
    for name, value in payload.carried.items():
        is_fine = value.isfinite() & (value.abs() <= largest)
        if not bool(is_fine.all()):
            gone[name] = ~is_fine
            payload.carried[name] = torch.where(is_fine, value, torch.zeros_like(value))
    return gone


def count_of(gone: dict[str, Tensor]) -> int:
    """Return how many numbers are gone."""
    return sum(int(one.sum()) for one in gone.values())


def differences(before: Payload, after: Payload) -> int:
    """Return how many numbers differ in tensors of the same name and shape."""
    ours, its = ({**one.carried, **one.side} for one in (before, after))
    return sum(
        int((value != its[name]).sum())
        for name, value in ours.items()
        if name in its and its[name].shape == value.shape
    )
