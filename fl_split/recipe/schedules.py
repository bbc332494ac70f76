"""Schedules: by which factor learning rates are multiplied at each place of a run.

Places are counted in rounds from 0: with ``per="step"`` step s of S in round r (from 1) is at
r - 1 + s/S, with ``per="round"`` all of its steps are at r - 1. Head and tail follow the same
schedule, each by its own steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass as plain
from dataclasses import replace
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from fl_split.tables import Table

ROUNDING = 1e-9
"""What places, which are sums of shares of rounds, may be off."""

Rounds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Per = Literal["step", "round"]


@plain(frozen=True)
class Moment:
    """Where in a run a step is taken.

    Attributes
    ----------
    round : int
        From 1.
    done, taken, total : int
        Of the round: steps done before, steps that this one is, and all.
    """

    round: int
    done: int
    taken: int
    total: int

    @property
    def before(self) -> Moment:
        """The step before this one; the first is its own."""
        return replace(self, done=max(0, self.done - 1))

    def place(self, per: Per) -> tuple[float, float]:
        """Return where the step begins and ends, in rounds."""
        if per == "round":
            return self.round - 1, self.round
        before = self.round - 1
        return before + self.done / self.total, before + (self.done + self.taken) / self.total


ONLY = Moment(1, 0, 1, 1)
"""The one step of a run of one round."""


@runtime_checkable
class Schedule(Protocol):
    """What a learning rate is multiplied by."""

    @property
    def warmup(self) -> float:
        """Rounds in which the factor rises to 1."""
        ...

    def factor(self, at: Moment, rounds: int) -> float:
        """Return the factor of a step, in a run of so many `rounds`."""
        ...


@dataclass(frozen=True, config=STRICT)
class Warm:
    """Base: a linear rise over `warmup` rounds, then what a schedule does with the rest.

    Parameters
    ----------
    warmup : float
        Rounds in which the factor rises; it reaches 1 in the last step of them.
    per : "step" or "round"
        When the factor changes.
    """

    warmup: Rounds = 0.0
    per: Per = "step"

    def __post_init__(self) -> None:
        if self.per == "round" and 0 < self.warmup <= 1:
            raise ValueError(
                f"warmup must be more than one round with per='round', got {self.warmup:g}: the "
                "rate of the first round would be the full one"
            )

    def factor(self, at: Moment, rounds: int) -> float:
        """Return the factor of a step."""
        begin, end = at.place(self.per)
        if begin < self.warmup:
            return min(1.0, end / self.warmup)
        return self._after(begin - self.warmup, rounds - self.warmup)

    def _after(self, place: float, length: float) -> float:
        """Return the factor `place` rounds after the rise; `length` is the rest of the run."""
        return 1.0


@dataclass(frozen=True, config=STRICT)
class Constant(Warm):
    """The same rate in all rounds, after a linear rise if there is a `warmup`."""


@dataclass(frozen=True, config=STRICT)
class Cosine(Warm):
    """Half a cosine, from 1 down to `final` (Loshchilov and Hutter, 2017, without restarts)."""

    final: Share = 0.0

    def _after(self, place: float, length: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * place / length)) / 2


@dataclass(frozen=True, config=STRICT)
class Linear(Warm):
    """A straight line, from 1 down to `final`."""

    final: Share = 0.0

    def _after(self, place: float, length: float) -> float:
        return 1 - (1 - self.final) * place / length


@dataclass(frozen=True, config=STRICT)
class Stairs(Warm):
    """Times `gamma` after every `every` rounds."""

    every: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1

    def _after(self, place: float, length: float) -> float:
        return float(self.gamma ** math.floor(place / self.every + ROUNDING))


SCHEDULES: Table[type[Schedule]] = Table(
    Schedule,
    "fl_split.schedules",
    {"constant": Constant, "cosine": Cosine, "linear": Linear, "step": Stairs},
)


def check_length(schedule: Schedule, rounds: int) -> None:
    """Raise ValueError if a schedule is longer than a run of `rounds`."""
    every = getattr(schedule, "every", 0)
    if schedule.warmup >= rounds:
        raise ValueError(
            f"warmup={schedule.warmup:g} takes the whole run of rounds={rounds}; give fewer "
            "rounds of warm-up, or more rounds"
        )
    if every and schedule.warmup + every >= rounds:
        raise ValueError(
            f"the first step comes after {schedule.warmup + every:g} rounds, but the run has "
            f"rounds={rounds}; give a smaller every, or more rounds"
        )
