"""Cells of a study: runs in folders of their own, which are found again and not repeated."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fl_split.spec_errors import SpecError
from simulations.runs.budget import First, parse_last
from simulations.runs.checkpoint import FREE
from simulations.runs.columns import sums
from simulations.runs.experiment import Experiment
from simulations.runs.files import DamagedError, OutputError, read_rounds, read_summary
from simulations.runs.results import EXPERIMENT, ROUNDS, SUMMARY
from simulations.runs.settings import read_toml

TOLD = ["ended_by", "final_accuracy", "best_accuracy", "client_accuracy"]
"""Columns of a study's file that come from each cell's summary, before its sums."""

LOCK = ".sweep.lock"
"""A file that a sweep locks while it runs; it stays when the sweep has ended."""


class UnreadableRun(OutputError):
    """A folder with a run that this version cannot read, and why."""


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
    DamagedError
        What it holds cannot be told.
    UnreadableRun
        It holds a run that this version cannot read.
    """
    path = folder / EXPERIMENT
    if not path.exists():
        return False
    found, expected = _saved(path, experiment), experiment.model_dump(exclude=FREE)
    if found == expected:
        return True
    known = _values(path)
    lost = [key for key in expected if key not in known]
    if lost and all(found[key] == expected[key] for key in expected.keys() & known.keys()):
        raise DamagedError(f"{path} is torn: it has no {lost[0]}")
    raise SpecError(f"{str(folder)!r} holds another experiment; give another --out")


def check_others(folder: Path, settings: Mapping[str, Any], axes: Collection[str]) -> None:
    """Let a folder hold other runs only if these differ in `axes` alone, as more seeds do.

    Those that cannot be read are passed over.

    Raises
    ------
    SpecError
        One is of another study.
    """
    like = Experiment.from_dict(settings)
    expected = like.model_dump(exclude={*FREE, *axes})
    for path in sorted(folder.glob(f"*/{EXPERIMENT}")):
        found = expected
        with suppress(OutputError):
            found = _saved(path, like, axes)
        for key, value in expected.items():
            if found[key] != value:
                raise SpecError(
                    f"{str(path.parent)!r} is of another study, with {key}={found[key]!r}; "
                    "give another --out"
                )


def _saved(path: Path, like: Experiment, but_for: Collection[str] = ()) -> dict[str, Any]:
    """Read what matters of a saved experiment; objects in memory are those of `like`."""
    values = {key: value for key, value in _values(path).items() if key not in but_for}
    objects = {key: one for key, one in like.objects().items() if values.get(key) == one}
    try:
        experiment = Experiment.from_dict({**values, **objects})
    except SpecError as error:
        raise UnreadableRun(f"{path}: {error}; remove the folder, or give another --out") from None
    return experiment.model_dump(exclude={*FREE, *but_for})


def _values(path: Path) -> dict[str, Any]:
    """Read the keys of a saved experiment; DamagedError if they cannot be read."""
    try:
        return read_toml(path)
    except SpecError as error:
        raise DamagedError(str(error)) from None


def holds_cells(folder: Path) -> bool:
    """Tell whether a sweep has begun in `folder`, or other runs lie in it."""
    return (folder / LOCK).exists() or any(folder.glob(f"*/{EXPERIMENT}"))


def is_complete(folder: Path) -> bool:
    """Tell whether the run in `folder` reached its end, and says so."""
    return summary_of(folder).get("status") == "complete"


def summary_of(folder: Path) -> dict[str, Any]:
    """Read the summary of a run; empty without one that can be read."""
    with suppress(DamagedError):
        return read_summary(folder / SUMMARY)
    return {}


def is_finished(folder: Path, cell: Cell) -> bool:
    """Tell whether `folder` holds the finished run of a cell, up to the budgets it has now.

    Raises
    ------
    SpecError
        It holds a run of another experiment.
    """
    try:
        return _is_finished(folder, cell)
    except (DamagedError, UnreadableRun):
        return False


def faults(found: Sequence[Cell], folder: Path) -> list[str]:
    """Name files of cells that are not as they were written, and what becomes of the cells."""
    told = []
    for cell in found:
        try:
            _is_finished(folder / cell.name, cell)
        except DamagedError as error:
            told.append(f"{error.fault}; {cell.name} is run again")
        except UnreadableRun as error:
            told.append(f"{error}; {cell.name} is left out")
    return told


def _is_finished(folder: Path, cell: Cell) -> bool:
    if not holds_run(folder, cell.experiment):
        return False
    summary, rounds = read_summary(folder / SUMMARY), read_rounds(folder / ROUNDS)
    if summary.get("status") != "complete":
        return False
    if len(rounds) != summary.get("rounds"):
        raise DamagedError(f"{folder / ROUNDS} has {len(rounds)} rounds, {SUMMARY} tells others")
    if not cell.until:
        return True
    totals = {**rounds.sum(numeric_only=True), "rounds": len(rounds), "by_round": rounds}
    budget = First((cell.experiment.parts.budget, parse_last(cell.until)))
    return len(rounds) >= cell.experiment.rounds or budget.is_spent(totals)


def study_frame(found: Sequence[Cell], folder: Path, status: Mapping[str, str]) -> pd.DataFrame:
    """One row per cell: what differs, its status, and what it gave and cost if it has ended."""
    rows = []
    for cell in found:
        summary = summary_of(folder / cell.name)
        row = {"cell": cell.name, **cell.settings, "status": status.get(cell.name, "waiting")}
        row["rounds_done"] = summary.get("rounds")
        rows.append({**row, **{key: summary.get(key) for key in TOLD}, **sums(summary)})
    return pd.DataFrame(rows)
