"""Phases: what is trained in which rounds, as exits that are trained in stages.

The regimes of arXiv 2407.14320, of a trunk and its exits:

    joint       (no phases)
    disjoint    phase(rounds=10, train='trunk') | phase(train='exits')
    mixed       phase(rounds=10, train='trunk') | phase(train='all')

What a phase leaves alone stays bit for bit. Dropout and batch statistics of the trunk are those of
training in every phase, where the paper evaluates a trunk that is frozen. An optimiser that lives
longer than a round counts the steps of all phases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.flat import Flat
from fl_split.models.cut import Head
from fl_split.spec_errors import SpecError
from fl_split.specs import STRICT, parse, stages
from fl_split.tables import Table

Trains = Literal["all", "trunk", "exits"]


@runtime_checkable
class Stage(Protocol):
    """What is trained in some rounds."""

    @property
    def rounds(self) -> int:
        """How many; 0 are all that are left."""
        ...

    @property
    def train(self) -> Trains:
        """What."""
        ...


@dataclass(frozen=True, config=STRICT)
class NoPhases:
    """Everything is trained in all rounds."""

    rounds: ClassVar[int] = 0
    train: ClassVar[Trains] = "all"


@dataclass(frozen=True, config=STRICT)
class Phase:
    """What is trained in the next `rounds`; the last phase takes all that are left.

    Parameters
    ----------
    rounds : int
        Rounds of the phase; 0, for the last one alone, is all that are left.
    train : str
        "all"; "trunk", the model without its exits, by the loss of its last classifier alone; or
        "exits" of the head, by their own losses, while all else stays as it is and nothing crosses
        the cut: so exits behind the cut stay too.
    """

    rounds: Annotated[int, Field(ge=0)] = 0
    train: Trains = "all"


PHASES: Table[type[Stage]] = Table(Stage, "fl_split.phases", {"none": NoPhases, "phase": Phase})


@plain_dataclass(frozen=True)
class Phases:
    """All phases of a run, in their order."""

    stages: Sequence[Stage] = (NoPhases(),)

    def trains(self, number: int) -> Trains:
        """Return what round `number`, from 1, trains."""
        end = 0
        for stage in self.stages[:-1]:
            end += stage.rounds
            if number <= end:
                return stage.train
        return self.stages[-1].train

    @property
    def spares_parts(self) -> bool:
        """Whether any phase leaves something untrained."""
        return any(stage.train != "all" for stage in self.stages)

    def kept(self, flat: Flat[Any], number: int) -> Tensor | None:
        """Return where in the weights (P,) of a half nothing moves in a round; None if nowhere."""
        trains = self.trains(number)
        if trains == "all":
            return None
        beside = flat.in_beside
        if trains == "trunk":
            return beside
        return torch.logical_not(beside & isinstance(flat.module, Head))

    def check(self, rounds: int) -> None:
        """Raise ValueError if the phases do not fit into so many rounds."""
        *others, last = self.stages
        if any(not stage.rounds for stage in others):
            raise ValueError("all phases but the last one need rounds, as phase(rounds=10)")
        before = sum(stage.rounds for stage in others)
        if before >= rounds:
            raise ValueError(
                f"the last phase begins after {before} rounds of rounds={rounds}; train longer"
            )
        if last.rounds and before + last.rounds != rounds:
            raise ValueError(
                f"the phases have {before + last.rounds} rounds of rounds={rounds}; leave rounds "
                "out of the last one, which takes all that are left"
            )


def parse_phases(spec: str) -> Phases:
    """Build ``"phase(...) | phase(...)"``.

    Raises
    ------
    SpecError
        A part is unknown or wrong, or `none` stands beside others.
    """
    found = [parse(stage, PHASES) for stage in stages(spec)]
    if len(found) > 1 and any(isinstance(one, NoPhases) for one in found):
        raise SpecError(f"{spec!r}: none is no phase; leave it out")
    return Phases(found)
