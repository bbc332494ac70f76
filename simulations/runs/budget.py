"""Budgets: they end a run when it has spent a given amount."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT, parse, shortened, stages
from fl_split.tables import Table
from simulations.runs.columns import ENERGY_JOULES, PAYLOAD, SENT, VIRTUAL_SECONDS

if TYPE_CHECKING:
    import pandas as pd

Limit = Annotated[float, Field(gt=0)]


ROUNDING = 1e-9
"""Share of a limit that sums of floating-point numbers may be off."""


@runtime_checkable
class Budget(Protocol):
    """An amount that a run may spend."""

    def is_spent(self, totals: Mapping[str, Any]) -> bool:
        """Tell, from sums over all rounds so far, whether nothing is left.

        `totals["by_round"]` has the values of each column that does not add up.
        """
        ...


class Limited:
    """A budget with a `limit` on what columns of rounds.csv count."""

    limit: float

    needs_system: ClassVar[bool] = False
    """Whether it counts what only a system model tells."""

    def spent(self, rows: Any) -> Any:
        """Return what was spent: by one row, by sums over rows, or by each row of a frame."""
        raise NotImplementedError

    def is_spent(self, totals: Mapping[str, Any]) -> bool:
        """Compare with the limit."""
        return bool(self.uses_up(self.spent(totals)))

    def uses_up(self, spent: Any) -> Any:
        """Tell whether `spent` (a number or a column) reaches the limit."""
        return spent >= self.limit * (1 - ROUNDING)

    def pays(self, spent: Any) -> Any:
        """Tell whether `spent` (a number or a column) is within the limit."""
        return spent <= self.limit * (1 + ROUNDING)

    def within(self, rounds: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
        """Return the rounds that it pays in full, and whether all rounds together use it up."""
        spent = self.spent(rounds).cumsum()
        return rounds[self.pays(spent)], bool(self.uses_up(spent).any())


@dataclass(frozen=True, config=STRICT)
class NoBudget:
    """All rounds of the experiment."""

    def is_spent(self, totals: Mapping[str, Any]) -> bool:
        """Return False."""
        return False


@dataclass(frozen=True, config=STRICT)
class Rounds(Limited):
    """So many rounds."""

    limit: Annotated[int, Field(ge=1)]

    def spent(self, rows: Any) -> Any:
        """Rounds done."""
        return rows["rounds"]


@dataclass(frozen=True, config=STRICT)
class Bytes(Limited):
    """So many bytes sent in both directions: payloads, or with weights everything counted."""

    limit: Limit
    of: Literal["payload", "all"] = "payload"

    def spent(self, rows: Any) -> Any:
        """Bytes sent."""
        return sum(rows[key] for key in (SENT if self.of == "all" else PAYLOAD))


@dataclass(frozen=True, config=STRICT)
class ClientFlops(Limited):
    """So many floating-point operations of all clients together."""

    limit: Limit

    def spent(self, rows: Any) -> Any:
        """Operations done."""
        return rows["client_flops"]


@dataclass(frozen=True, config=STRICT)
class Nominal(Limited):
    """So many samples, each counted with the codec's nominal ratio, as the ADC paper does.

    For comparisons with the paper; labels, rounding, encoders and weights count nothing.
    """

    limit: Limit

    def spent(self, rows: Any) -> Any:
        """Uncompressed samples, in the paper's account."""
        return rows["nominal_samples"]


@dataclass(frozen=True, config=STRICT)
class VirtualSeconds(Limited):
    """So many seconds of virtual time, under the experiment's `system`."""

    limit: Limit

    needs_system: ClassVar = True

    def spent(self, rows: Any) -> Any:
        """Virtual seconds passed."""
        return rows[VIRTUAL_SECONDS]


@dataclass(frozen=True, config=STRICT)
class Joules(Limited):
    """So many joules of all clients together, under the experiment's `system`."""

    limit: Limit

    needs_system: ClassVar = True

    def spent(self, rows: Any) -> Any:
        """Joules taken."""
        return rows[ENERGY_JOULES]


@dataclass(frozen=True, config=STRICT)
class Patience:
    """Ends the run after so many rounds without a better value than before.

    Parameters
    ----------
    rounds : int
        Rounds to wait.
    of : "train_loss" or "client_accuracy"
        What is to get better: the training loss, or the mean accuracy of clients on samples that
        they hold out (`holdout`). The test images choose nothing.
    least : float
        Smallest change that counts as better.
    """

    rounds: Annotated[int, Field(ge=1)] = 10
    of: Literal["train_loss", "client_accuracy"] = "train_loss"
    least: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    def is_spent(self, totals: Mapping[str, Any]) -> bool:
        """Tell whether the best value is so many rounds old."""
        sign = -1 if self.of == "train_loss" else 1
        values = [sign * float(value) for value in totals["by_round"][self.of]]
        best, when = -math.inf, -1
        for number, value in enumerate(values):
            if value > best + self.least:
                best, when = value, number
        return len(values) - 1 - when >= self.rounds


@dataclass(frozen=True)
class First:
    """Whichever of several budgets runs out first."""

    budgets: tuple[Any, ...]

    def is_spent(self, totals: Mapping[str, Any]) -> bool:
        """Ask all of them."""
        return any(budget.is_spent(totals) for budget in self.budgets)


@dataclass(frozen=True)
class Last:
    """Whichever of several budgets runs out last."""

    budgets: tuple[Any, ...]

    def is_spent(self, totals: Mapping[str, Any]) -> bool:
        """Ask all of them."""
        return all(budget.is_spent(totals) for budget in self.budgets)


BUDGETS: Table[Any] = Table(
    Budget,
    "fl_split.budgets",
    {
        "bytes": Bytes,
        "client_flops": ClientFlops,
        "joules": Joules,
        "nominal": Nominal,
        "none": NoBudget,
        "patience": Patience,
        "rounds": Rounds,
        "seconds": VirtualSeconds,
    },
)


def parse_budget(spec: str) -> Budget:
    """Build one budget, or ``"a(...) | b(...)"``; SpecError if that cannot be."""
    return First(tuple(parse(part, BUDGETS) for part in stages(spec)))


def each(budget: Budget) -> Sequence[Budget]:
    """Return the budgets that :func:`parse_budget` has put together, in the order of the spec."""
    return budget.budgets if isinstance(budget, First) else (budget,)


def by_name(spec: str, budget: Budget) -> dict[str, Budget]:
    """Return the same by the names that `spec`, of which `budget` was built, gives them."""
    names = [shortened(stage, BUDGETS) for stage in stages(spec)]
    return dict(zip(names, each(budget), strict=True))


def check_budgets(budgets: Iterable[Any], system: object, holdout: float = 0.0) -> None:
    """Raise ValueError if one of `budgets` needs a system, or held-out samples, without any."""
    for budget in budgets:
        if isinstance(budget, Patience) and budget.of == "client_accuracy" and not holdout:
            raise ValueError(
                "budget: patience(of='client_accuracy') needs samples that clients hold out; give "
                "holdout=0.1, or of='train_loss'"
            )
        if getattr(budget, "needs_system", False) and not system:
            name = next(name for name, kind in BUDGETS.items() if kind is type(budget))
            raise ValueError(
                f"budget: {name} is counted by a system model; give one, as "
                "system=\"devices('phone_mid') | lte()\""
            )


def parse_last(specs: Sequence[str]) -> Budget:
    """Build a budget that is spent when all of `specs` are; without specs it never is."""
    return Last(tuple(map(parse_budget, specs))) if specs else NoBudget()
