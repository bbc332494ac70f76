"""Finished runs within equal budgets: the accuracy that each had when the budget was used up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from fl_split.spec_errors import SpecError
from simulations.report.finished import FinishedRun
from simulations.report.runs import collect
from simulations.report.timing import check_graphs, spent_under, system_of
from simulations.runs.budget import Limited, by_name, parse_budget
from simulations.runs.columns import ENERGY_JOULES, VIRTUAL_SECONDS
from simulations.system.system import System

COLUMNS = ["run", "budget", "system", "accuracy", "spread", "rounds", "reached", "seeds"]


def within(
    folders: Sequence[Path], budgets: Sequence[str], systems: Sequence[str] = ()
) -> pd.DataFrame:
    """Return a row for each configuration and budget, of all runs in and below folders.

    Budgets of `seconds` or `joules` have a row for each of `systems`, under which runs are timed.

    Columns: `run`, the label; `budget`; `system`, empty where it does not matter; `accuracy`, the
    mean over seeds after the last round that the budget pays in full, nan if it does not pay one
    round of each seed; `spread`, the standard deviation over seeds, nan for one; `rounds`, the
    mean number that is paid; `reached`, false if a run ended with budget left; `seeds`.

    Raises
    ------
    ValueError
        No run is complete, a budget or system is wrong, or a run has no task graphs.
    """
    limits = {name: one for spec in budgets for name, one in _limited(spec).items()}
    parsed = {spec: system_of(spec) for spec in systems}
    timed = [name for name, budget in limits.items() if budget.needs_system]
    if timed and not parsed:
        raise ValueError(f"{timed[0]}: give a system, as \"devices('pi5') | lte()\"")
    collection, rows = collect(folders), list[dict[str, object]]()
    for one in collection.configurations:
        for run in one.runs:
            rows += [{"run": one.label, **row} for row in _of_run(run, limits, parsed)]
    return _over_seeds(pd.DataFrame(rows))


def _limited(spec: str) -> dict[str, Limited]:
    """Return the budgets of a spec by name; SpecError if one has no limit to compare at."""
    found = {}
    for name, budget in by_name(spec, parse_budget(spec)).items():
        if not isinstance(budget, Limited):
            raise SpecError(f"{name} is no amount that runs can be compared at; try bytes(1e8)")
        found[name] = budget
    return found


def _of_run(
    run: FinishedRun, limits: dict[str, Limited], systems: dict[str, System]
) -> Iterator[dict[str, object]]:
    """Return a row for each budget of one run."""
    rounds = {"": run.rounds.assign(rounds=1)}
    if any(budget.needs_system for budget in limits.values()):
        check_graphs(run)
        for spec, system in systems.items():
            spent = spent_under(run, spec, system)
            rounds[spec] = rounds[""].assign(
                **{
                    VIRTUAL_SECONDS: [one.seconds for one in spent],
                    ENERGY_JOULES: [one.joules.sum() for one in spent],
                }
            )
    for name, budget in limits.items():
        for spec in systems if budget.needs_system else [""]:
            paid, is_used_up = budget.within(rounds[spec])
            accuracy = paid["accuracy"].iloc[-1] if len(paid) else math.nan
            row = {"budget": name, "system": spec, "rounds": len(paid), "reached": is_used_up}
            yield {**row, "accuracy": accuracy}


def _over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    groups = rows.groupby(["run", "budget", "system"], sort=False)
    found = groups.agg(
        accuracy=("accuracy", mean_of_all),
        spread=("accuracy", "std"),
        rounds=("rounds", "mean"),
        reached=("reached", "all"),
        seeds=("rounds", "count"),
    )
    return found.reset_index()[COLUMNS]


def mean_of_all(values: pd.Series[float]) -> float:
    """Return the mean; nan, not the mean of the others, if one is nan."""
    return float(values.mean(skipna=False))


def percent(mean: float, spread: float, reached: bool) -> str:
    """Show an accuracy over seeds; a star says that a run ended with budget left."""
    if pd.isna(mean):
        return "-"
    shown = "" if pd.isna(spread) else f" ± {100 * spread:.1f}"
    return f"{100 * mean:.1f}{shown}{'' if reached else '*'}"
