"""Cells of a study: runs in folders of their own, which are found again and not repeated."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fl_split.spec_errors import SpecError
from simulations.runs.budget import First, parse_last
from simulations.runs.checkpoint import FREE
from simulations.runs.columns import sums
from simulations.runs.experiment import Experiment
from simulations.runs.results import EXPERIMENT, ROUNDS, SUMMARY
from simulations.runs.settings import read_toml

TOLD = ["ended_by", "final_accuracy", "best_accuracy", "client_accuracy"]
"""Columns of a study's file that come from each cell's summary, before its sums."""

LOCK = ".sweep.lock"
"""A file that a sweep locks while it runs; it stays when the sweep has ended."""


@dataclass(frozen=True)
class Cell:
    """One experiment of a study, with its name and the keys in which it differs from other cells.

    `until` are budgets of the study: the run ends when all of them, or its own, are used up.
    """

    name: str
    settings: Mapping[str, Any]
    experiment: Experiment
    until: Sequence[str] = ()

    @classmethod
    def read(
        cls,
        name: str,
        values: Mapping[str, Any],
        settings: Mapping[str, Any],
        until: Sequence[str] = (),
    ) -> Cell:
        """Check the experiment of `values` and `settings`; SpecError names the cell."""
        try:
            return cls(name, settings, Experiment.from_dict({**values, **settings}), until)
        except SpecError as error:
            raise SpecError(f"{name}: {error}") from None


def holds_run(folder: Path, experiment: Experiment) -> bool:
    """Tell whether `folder` holds a run of this experiment, finished or not.

    Raises
    ------
    SpecError
        It holds a run of another experiment.
    """
    if not (folder / EXPERIMENT).exists():
        return False
    if _saved(folder / EXPERIMENT, experiment) != experiment.model_dump(exclude=FREE):
        raise SpecError(f"{str(folder)!r} holds another experiment; give another --out")
    return True


def check_others(folder: Path, settings: Mapping[str, Any], axes: Collection[str]) -> None:
    """Let a folder hold other runs only if these differ in `axes` alone, as more seeds do.

    Raises
    ------
    SpecError
        One is of another study.
    """
    like = Experiment.from_dict(settings)
    expected = like.model_dump(exclude={*FREE, *axes})
    for path in sorted(folder.glob(f"*/{EXPERIMENT}")):
        found = _saved(path, like, axes)
        for key, value in expected.items():
            if found[key] != value:
                raise SpecError(
                    f"{str(path.parent)!r} is of another study, with {key}={found[key]!r}; "
                    "give another --out"
                )


def _saved(path: Path, like: Experiment, but_for: Collection[str] = ()) -> dict[str, Any]:
    """Read what matters of a saved experiment; objects in memory are those of `like`."""
    values = {key: value for key, value in read_toml(path).items() if key not in but_for}
    objects = {key: one for key, one in like.objects().items() if values.get(key) == one}
    return Experiment.from_dict({**values, **objects}).model_dump(exclude={*FREE, *but_for})


def holds_cells(folder: Path) -> bool:
    """Tell whether a sweep has begun in `folder`, or other runs lie in it."""
    return (folder / LOCK).exists() or any(folder.glob(f"*/{EXPERIMENT}"))


def is_complete(folder: Path) -> bool:
    """Tell whether the run in `folder` reached its end."""
    summary = folder / SUMMARY
    return summary.exists() and json.loads(summary.read_text())["status"] == "complete"


def is_finished(folder: Path, cell: Cell) -> bool:
    """Tell whether `folder` holds the finished run of a cell, up to the budgets it has now.

    Raises
    ------
    SpecError
        It holds a run of another experiment.
    """
    if not holds_run(folder, cell.experiment) or not is_complete(folder):
        return False
    if not cell.until:
        return True
    rounds = pd.read_csv(folder / ROUNDS)
    totals = {**rounds.sum(numeric_only=True), "rounds": len(rounds)}
    budget = First((cell.experiment.parts.budget, parse_last(cell.until)))
    return len(rounds) >= cell.experiment.rounds or budget.is_spent(totals)


def study_frame(found: Sequence[Cell], folder: Path, status: Mapping[str, str]) -> pd.DataFrame:
    """One row per cell: what differs, its status, and what it gave and cost if it has ended."""
    rows = []
    for cell in found:
        path = folder / cell.name / SUMMARY
        summary = json.loads(path.read_text()) if path.exists() else {}
        row = {"cell": cell.name, **cell.settings, "status": status.get(cell.name, "waiting")}
        row["rounds_done"] = summary.get("rounds")
        rows.append({**row, **{key: summary.get(key) for key in TOLD}, **sums(summary)})
    return pd.DataFrame(rows)
