"""Phases: what is trained in which rounds, as parts of a model that are trained in stages.

Of a trunk and its exits, the regimes of arXiv 2407.14320:

    joint       (no phases)
    disjoint    phase(rounds=10, train='trunk') | phase(train='exits')
    mixed       phase(rounds=10, train='trunk') | phase(train='all')

Of a codec over a noisy channel, the stages of ASTC (arXiv 2505.17604):

    phase(rounds=9, train='trunk') | phase(rounds=9, train='codec') | phase(train='codec, tail')

What a phase leaves alone stays bit for bit. Dropout and batch statistics of what is frozen are
those of training in every phase, where papers evaluate it. An optimiser that lives longer than a
round counts the steps of all phases.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.flat import Flat
from fl_split.models.parts import EVERY, EXITS_ALONE, GROUPS, Parts, named
from fl_split.spec_errors import SpecError
from fl_split.specs import STRICT, parse, stages
from fl_split.tables import Table


@runtime_checkable
class Stage(Protocol):
    """What is trained in some rounds."""

    @property
    def rounds(self) -> int:
        """How many; 0 are all that are left."""
        ...

    @property
    def train(self) -> str:
        """What: names of parts or groups, see :func:`fl_split.models.parts.named`."""
        ...


@dataclass(frozen=True, config=STRICT)
class NoPhases:
    """Everything is trained in all rounds."""

    rounds: ClassVar[int] = 0
    train: ClassVar[str] = "all"


@dataclass(frozen=True, config=STRICT)
class Phase:
    """What is trained in the next `rounds`; the last phase takes all that are left.

    Parameters
    ----------
    rounds : int
        Rounds of the phase; 0, for the last one alone, is all that are left.
    train : str
        Parts, with commas between: "head" and "tail", the model's own layers before and behind the
        cut; "codec", its trained encoder and decoder; "gates", what is trained of a selection of
        tokens; "exits". "all" are all of them, "trunk" all but exits. A loss beside the last
        classifier's counts where its part learns. While "exits" learn alone nothing crosses the
        cut; exits behind it learn where the tail does, too.
    """

    rounds: Annotated[int, Field(ge=0)] = 0
    train: str = "all"

    def __post_init__(self) -> None:
        named(self.train)


PHASES: Table[type[Stage]] = Table(Stage, "fl_split.phases", {"none": NoPhases, "phase": Phase})


@plain_dataclass(frozen=True)
class Phases:
    """All phases of a run, in their order."""

    stages: Sequence[Stage] = (NoPhases(),)

    def trains(self, number: int) -> Parts:
        """Return what round `number`, from 1, trains."""
        end = 0
        for stage in self.stages[:-1]:
            end += stage.rounds
            if number <= end:
                return named(stage.train)
        return named(self.stages[-1].train)

    @property
    def spares_parts(self) -> bool:
        """Whether any phase leaves something untrained."""
        return any(named(stage.train) != EVERY for stage in self.stages)

    def kept(self, flat: Flat[Any], number: int) -> Tensor | None:
        """Return where in the weights (P,) of a half nothing moves in a round; None if nowhere."""
        trains = self.trains(number)
        if trains == EVERY:
            return None
        if flat.module.part == "tail" and "tail" not in trains:  # nor do exits behind the cut
            trains -= EXITS_ALONE
        return flat.outside(trains)

    def check_parts(self, known: Collection[str], is_exit_before_cut: bool) -> None:
        """Raise ValueError if a phase trains a part that is not among those of a run.

        Exits behind the cut alone are none that could learn without the tail.
        """
        has = f"it has {', '.join(sorted(known))}"
        for stage in self.stages:
            words = {word.strip() for word in stage.train.split(",")} - GROUPS.keys()
            if wrong := sorted(words - {*known}):
                raise ValueError(f"this run has no {wrong[0]} to train; {has}")
            if named(stage.train) & {"exits", "tail"} == EXITS_ALONE and not is_exit_before_cut:
                raise ValueError(
                    f"{stage.train!r} trains exits of the head alone, and there are none: those "
                    "behind the cut learn with the tail; add a block before the cut, as "
                    "exits=plain(after='1, 3'), or take train='exits, tail'"
                )

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
