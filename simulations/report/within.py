"""Finished runs within equal budgets: the accuracy that each had when the budget was used up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fl_split.spec_errors import SpecError
from simulations.report.accuracy_panels import AccuracyPanel, accuracy_panels
from simulations.report.finished import FinishedRun
from simulations.report.runs import collect
from simulations.report.timing import check_graphs, spent_under, system_of
from simulations.runs.budget import Joules, Limited, by_name, parse_budget
from simulations.runs.columns import ENERGY_JOULES, VIRTUAL_SECONDS
from simulations.system.system import System

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ["run", "budget", "system", "accuracy", "spread", "rounds", "reached", "seeds"]


@dataclass(frozen=True)
class Spending:
    """What one run had spent, and its accuracy, after each round, under one budget.

    Attributes
    ----------
    label, budget, system : str
        Of the configuration; the budget's spec; the system's, empty where it does not matter.
    limit : Limited
        What the budget's spec describes.
    rounds : pandas.DataFrame
        A row for each round, with all that the budget may count.
    """

    label: str
    budget: str
    system: str
    limit: Limited
    run: FinishedRun
    rounds: pd.DataFrame

    def row(self) -> dict[str, Any]:
        """Return where the run stood after the last round that the budget pays in full."""
        paid, is_used_up = self.limit.within(self.rounds)
        accuracy = paid["accuracy"].iloc[-1] if len(paid) else math.nan
        place = {"run": self.label, "budget": self.budget, "system": self.system}
        return {**place, "accuracy": accuracy, "rounds": len(paid), "reached": is_used_up}


def spendings(
    folders: Sequence[Path], budgets: Sequence[str], systems: Sequence[str] = ()
) -> list[Spending]:
    """Return what all runs in and below folders have spent, under each budget.

    Budgets of `seconds` or `joules` count under each of `systems`.

    Raises
    ------
    ValueError
        No run is complete, a budget or system is wrong, or a run has no task graphs.
    """
    limits = {name: one for spec in budgets for name, one in _limited(spec).items()}
    parsed = {spec: system_of(spec) for spec in systems}
    timed = [name for name, limit in limits.items() if limit.needs_system]
    if timed and not parsed:
        raise ValueError(f"{timed[0]}: give a system, as \"devices('pi5') | lte()\"")
    found = list[Spending]()
    for one in collect(folders).configurations:
        for run in one.runs:
            plain = run.rounds.assign(rounds=1)
            under = dict(_timed(run, plain, parsed if timed else {}))
            if any(isinstance(limit, Joules) for limit in limits.values()):
                _check_watts(run, parsed)
            for name, limit in limits.items():
                tables = under if limit.needs_system else {"": plain}
                found += [
                    Spending(one.label, name, spec, limit, run, table)
                    for spec, table in tables.items()
                ]
    return found


def _limited(spec: str) -> dict[str, Limited]:
    """Return the budgets of a spec by name; SpecError if one has no limit to compare at."""
    found = {}
    for name, budget in by_name(spec, parse_budget(spec)).items():
        if not isinstance(budget, Limited):
            raise SpecError(f"{name} is no amount that runs can be compared at; try bytes(1e8)")
        found[name] = budget
    return found


def _timed(
    run: FinishedRun, rounds: pd.DataFrame, systems: Mapping[str, System]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each system with the rounds, as they are timed under it."""
    for spec, system in systems.items():
        check_graphs(run)
        spent = spent_under(run, spec, system)
        seconds, joules = ([one.seconds for one in spent], [one.joules.sum() for one in spent])
        yield spec, rounds.assign(**{VIRTUAL_SECONDS: seconds, ENERGY_JOULES: joules})


def _check_watts(run: FinishedRun, systems: Mapping[str, System]) -> None:
    """Raise ValueError where a device has no watts: it would seem to spend nothing."""
    for spec, system in systems.items():
        fleet = system.fleet(int(run.settings["clients"]), run.seed)
        names = [device.name for device in fleet.devices if not device.has_watts]
        if names:
            raise ValueError(f"joules: {', '.join(names)} of {spec!r} has no watts; fill them in")


def within(found: Sequence[Spending]) -> pd.DataFrame:
    """Return a row for each configuration, budget and system.

    Columns: `run`, the label; `budget`; `system`, empty where it does not matter; `accuracy`, the
    mean over seeds after the last round that the budget pays in full, nan if it does not pay one
    round of each seed; `spread`, the standard deviation over seeds, nan for one; `rounds`, the
    mean number that is paid; `reached`, false if a run ended with budget left; `seeds`.
    """
    groups = pd.DataFrame([one.row() for one in found]).groupby(COLUMNS[:3], sort=False)
    table = groups.agg(
        accuracy=("accuracy", mean_of_all),
        spread=("accuracy", lambda values: float(values.std(skipna=False))),
        rounds=("rounds", "mean"),
        reached=("reached", "all"),
        seeds=("rounds", "count"),
    )
    return table.reset_index()[COLUMNS]


def within_figure(found: Sequence[Spending]) -> Figure:
    """Draw accuracy against what each budget counts, a panel each, with a line at the limit."""
    panels: dict[tuple[str, str], AccuracyPanel] = {}
    groups: dict[tuple[str, str, str], list[Spending]] = {}
    for one in found:
        place = one.budget, one.system
        panels.setdefault(place, AccuracyPanel(one.system, one.budget, {}, one.limit.limit))
        groups.setdefault((*place, one.label), []).append(one)
    for (budget, system, label), group in groups.items():
        length = min(len(one.rounds) for one in group)
        spent, accuracy = (
            np.mean([of[:length] for of in several], axis=0)
            for several in (
                [np.cumsum(one.limit.spent(one.rounds).to_numpy()) for one in group],
                [one.rounds["accuracy"].to_numpy() for one in group],
            )
        )
        panels[budget, system].lines[label] = spent, accuracy
    return accuracy_panels([*panels.values()])


def mean_of_all(values: pd.Series[float]) -> float:
    """Return the mean; nan, not the mean of the others, if one is nan."""
    return float(values.mean(skipna=False))


def percent(mean: float, spread: float, reached: bool) -> str:
    """Show an accuracy over seeds; a star says that a run ended with budget left."""
    if pd.isna(mean):
        return "-"
    shown = "" if pd.isna(spread) else f" ± {100 * spread:.1f}"
    return f"{100 * mean:.1f}{shown}{'' if reached else '*'}"
