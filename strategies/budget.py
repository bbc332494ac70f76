"""Budgets: when a run has spent enough, whatever it has learnt by then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT, parse, stages

Limit = Annotated[float, Field(gt=0)]


class Budget(Protocol):
    """Something that runs out."""

    def is_spent(self, totals: Mapping[str, Any]) -> bool:
        """Tell, from sums over all rounds so far, whether nothing is left."""
        ...


@dataclass(frozen=True, config=STRICT)
class NoBudget:
    """All rounds of the experiment."""

    def is_spent(self, totals: Mapping[str, Any]) -> bool:
        """Return False."""
        return False


@dataclass(frozen=True, config=STRICT)
class Rounds:
    """So many rounds."""

    limit: Annotated[int, Field(ge=1)]

    def is_spent(self, totals: Mapping[str, Any]) -> bool:
        """Compare with the rounds done."""
        return totals["rounds"] >= self.limit


@dataclass(frozen=True, config=STRICT)
class Bytes:
    """So many bytes sent in both directions: payloads, or with weights everything counted."""

    limit: Limit
    of: Literal["payload", "all"] = "payload"

    def is_spent(self, totals: Mapping[str, Any]) -> bool:
        """Compare with the bytes sent."""
        spent = totals["payload_bytes_up"] + totals["payload_bytes_down"]
        if self.of == "all":
            spent += totals["head_bytes_up"] + totals["head_bytes_down"]
        return spent >= self.limit


@dataclass(frozen=True, config=STRICT)
class ClientFlops:
    """So many floating-point operations of all clients together."""

    limit: Limit

    def is_spent(self, totals: Mapping[str, Any]) -> bool:
        """Compare with the operations done."""
        return totals["client_flops"] >= self.limit


@dataclass(frozen=True)
class First:
    """Whichever of several budgets runs out first."""

    budgets: tuple[Any, ...]

    def is_spent(self, totals: Mapping[str, Any]) -> bool:
        """Ask all of them."""
        return any(budget.is_spent(totals) for budget in self.budgets)


BUDGETS = {"bytes": Bytes, "client_flops": ClientFlops, "none": NoBudget, "rounds": Rounds}


def parse_budget(spec: str) -> Budget:
    """Build one budget, or ``"a(...) | b(...)"``; SpecError if that cannot be."""
    return First(tuple(parse(part, BUDGETS) for part in stages(spec)))
