"""Policies: where an image leaves the device, given what its exits say.

A rule looks at one exit after the other: the image leaves where the rule is sure. Where no exit
is, it is sent from the cut. `trend` sends it earlier where looking further does not pay. The
server has the same rule, and looks at its own exits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT, shortened
from fl_split.tables import Table
from simulations.inference.gate import Gate
from simulations.inference.lyapunov import Lyapunov
from simulations.inference.policy import AllSent, Decisions, Policy, margins
from simulations.inference.ppo import Ppo
from simulations.inference.ways import Probabilities, Ways

Share = Annotated[float, Field(ge=0, le=1)]
STEPS = 20
"""Of a sweep over thresholds from 0 to 1."""


class Rule(Policy):
    """A policy that looks at one exit after the other."""

    @abstractmethod
    def sure(self, local: Probabilities) -> NDArray[np.bool_]:
        """Tell where (E, N) images may leave, given probabilities of E exits (E, N, C)."""

    def gives_up(self, local: Probabilities) -> NDArray[np.bool_]:
        """Tell where (E, N) an image is sent without being looked at further."""
        return np.zeros(local.shape[:2], dtype=bool)

    def decide(self, ways: Ways) -> Decisions:
        """Take the first exit at which the rule is sure or gives up."""
        exits, images = np.flatnonzero(ways.has_exit), len(ways.labels)
        place = np.full(images, len(ways.names) - 1)
        is_sent, is_open = np.ones(images, dtype=bool), np.ones(images, dtype=bool)
        local = ways.local[exits]
        for number, sure, gives_up in zip(
            exits, self.sure(local), self.gives_up(local), strict=True
        ):
            leaves = is_open & sure
            stops = is_open & ~sure & gives_up & ways.can_send[number]
            place[leaves | stops], is_sent[leaves] = number, False
            is_open &= ~(leaves | stops)
        return Decisions(place, is_sent, self._behind(ways, place))

    def _behind(self, ways: Ways, place: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Take the first exit of the server at which the rule is sure of what comes from `place`.

        The server knows nothing of what exits of the device have said.
        """
        if ways.behind is None:
            return None
        answers = ways.behind.answers[:, place, np.arange(len(place))]
        sure = self.sure(answers) & ~np.isnan(answers).any(axis=2)
        return np.where(sure.any(axis=0), sure.argmax(axis=0), -1)


@dataclass(frozen=True, config=STRICT)
class Threshold(Rule):
    """Leave where the largest probability is `tau` or more.

    Parameters
    ----------
    tau : float
        Smallest confidence.
    """

    tau: Share = 0.9

    def sure(self, local: Probabilities) -> NDArray[np.bool_]:
        """Compare the largest probability."""
        return np.asarray(local.max(axis=2) >= self.tau)

    def sweep(self) -> Sequence[Policy]:
        """Return thresholds from 0 to 1."""
        return [replace(self, tau=step / STEPS) for step in range(STEPS + 1)]


@dataclass(frozen=True, config=STRICT)
class Margin(Rule):
    """Leave where the two largest probabilities differ by `tau` or more.

    Parameters
    ----------
    tau : float
        Smallest margin.
    """

    tau: Share = 0.8

    def sure(self, local: Probabilities) -> NDArray[np.bool_]:
        """Compare the margin."""
        return np.asarray(margins(local) >= self.tau)

    def sweep(self) -> Sequence[Policy]:
        """Return margins from 0 to 1."""
        return [replace(self, tau=step / STEPS) for step in range(STEPS + 1)]


@dataclass(frozen=True, config=STRICT)
class Patience(Rule):
    """Leave where `count` exits in a row say the same class (PABEE, arXiv 2006.04152).

    Parameters
    ----------
    count : int
        Exits that agree.
    """

    count: Annotated[int, Field(ge=1)] = 2

    def sure(self, local: Probabilities) -> NDArray[np.bool_]:
        """Count exits that agree."""
        answers = local.argmax(axis=2)
        found, agree = [], np.zeros(answers.shape[1], dtype=int)
        for number, now in enumerate(answers):
            same = number > 0 and now == answers[number - 1]
            agree = np.where(same, agree + 1, 1)
            found.append(agree >= self.count)
        return np.array(found)

    def sweep(self) -> Sequence[Policy]:
        """Return counts from 1 to what hardly any device has exits for."""
        return [replace(self, count=count) for count in range(1, 13)]


@dataclass(frozen=True, config=STRICT)
class Trend(Rule):
    """Leave where the margin is `tau`, send where it grows by less than `least` (as in REEN).

    Inspired by arXiv 2412.19587: an image is handed over whose confidence does not increase
    fast enough from exit to exit.

    Parameters
    ----------
    tau : float
        Smallest margin to leave with.
    least : float
        Smallest growth of the margin, from one exit to the next, to go on with.
    """

    hands_over: ClassVar[bool] = True

    tau: Share = 0.8
    least: float = 0.05

    def sure(self, local: Probabilities) -> NDArray[np.bool_]:
        """Compare the margin."""
        return np.asarray(margins(local) >= self.tau)

    def gives_up(self, local: Probabilities) -> NDArray[np.bool_]:
        """Compare the growth of the margin; the first exit has none."""
        growth = np.diff(margins(local), axis=0, prepend=-np.inf)
        return np.asarray(growth < self.least)

    def sweep(self) -> Sequence[Policy]:
        """Return margins from 0 to 1."""
        return [replace(self, tau=step / STEPS) for step in range(STEPS + 1)]


@dataclass(frozen=True, config=STRICT)
class AllLocal(Policy):
    """Every image leaves at the last exit."""

    def decide(self, ways: Ways) -> Decisions:
        """Choose the last exit."""
        images = len(ways.labels)
        last = int(np.flatnonzero(ways.has_exit)[-1])
        return Decisions(np.full(images, last), np.zeros(images, dtype=bool))


@dataclass(frozen=True, config=STRICT)
class Oracle(Policy):
    """Knows all answers: the first exit that is right, else the server's with the fewest bytes.

    Of the server's exits the first that is right counts. If nobody is right, the first exit. No
    policy can be right more often: an upper line, not a method.
    """

    def decide(self, ways: Ways) -> Decisions:
        """Look at the labels."""
        exits = np.flatnonzero(ways.has_exit)
        right = ways.local[exits].argmax(axis=2) == ways.labels
        served = ways.served[None]
        if ways.behind is not None:
            served = np.concatenate([ways.behind.answers, served])
        came = ~np.isnan(served).any(axis=3)
        by_server = came & (np.nan_to_num(served).argmax(axis=3) == ways.labels)
        dear = np.where(by_server.any(axis=0), ways.sent_bytes, np.inf)
        is_sent = ~right.any(axis=0) & by_server.any(axis=(0, 1))
        place = np.where(is_sent, dear.argmin(axis=0), exits[right.argmax(axis=0)])
        behind = by_server[:, place, np.arange(len(place))].argmax(axis=0)
        behind = np.where(behind == len(served) - 1, -1, behind)
        return Decisions(place, is_sent, None if ways.behind is None else behind)


def name_of(policy: Policy) -> str:
    """Write a policy as a spec, without what is as by default."""
    name = next((name for name, kind in POLICIES.items() if type(policy) is kind), "")
    if not name:
        return repr(policy)
    values = ", ".join(f"{key}={value!r}" for key, value in vars(policy).items())
    return shortened(f"{name}({values})", POLICIES)


POLICIES: Table[type[Policy]] = Table(
    Policy,
    "fl_split.policies",
    {
        "all_local": AllLocal,
        "all_sent": AllSent,
        "gate": Gate,
        "lyapunov": Lyapunov,
        "margin": Margin,
        "oracle": Oracle,
        "patience": Patience,
        "ppo": Ppo,
        "threshold": Threshold,
        "trend": Trend,
    },
)
