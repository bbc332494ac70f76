"""The contract of a policy: where an image leaves the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from simulations.data.cache import Progress
from simulations.inference.latency import Latency
from simulations.inference.ways import Probabilities, Ways


class Decisions(NamedTuple):
    """For each of N images the number of its last place, and whether it is sent from there.

    `behind` is the number of the server's exit at which an image leaves that is sent, -1 for none;
    it is None where no image asks the server's exits. `flops` are operations of the device on
    the decision itself.
    """

    place: NDArray[np.int64]
    is_sent: NDArray[np.bool_]
    behind: NDArray[np.int64] | None = None
    flops: NDArray[np.int64] | int = 0


class Policy(ABC):
    """Decides for images whether they leave at an exit or are sent."""

    needs_exits: ClassVar[bool] = True
    """Whether it asks the exits on an image's way, which costs operations."""
    hands_over: ClassVar[bool] = False
    """Whether it sends images from exits before the cut, where that can be."""

    @abstractmethod
    def decide(self, ways: Ways) -> Decisions:
        """Return decisions on all images; a choice on one depends on no other."""

    def sweep(self) -> Sequence[Policy]:
        """Return policies of the kind that make a frontier; those that fix all give themselves."""
        return [self]


@dataclass(frozen=True, config=STRICT)
class AllSent(Policy):
    """Every image is sent from the cut."""

    needs_exits: ClassVar[bool] = False

    def decide(self, ways: Ways) -> Decisions:
        """Choose the cut."""
        images = len(ways.labels)
        return Decisions(np.full(images, len(ways.names) - 1), np.ones(images, dtype=bool))


class Learner(Policy):
    """A policy that decides nothing until it has learnt from held-out images."""

    @abstractmethod
    def learn(
        self, held: Ways, latency: Latency, price: float, seed: int, progress: Progress
    ) -> Policy:
        """Return the policy that has learnt from `held`: accuracy less `price` times seconds."""

    def decide(self, ways: Ways) -> Decisions:
        """Refuse."""
        raise ValueError(f"{self!r} has learnt nothing yet")


def margins(local: Probabilities) -> Probabilities:
    """Return by how much the largest probability exceeds the second, (E, N)."""
    ordered = np.sort(local, axis=2)
    return np.asarray(ordered[..., -1] - ordered[..., -2])
