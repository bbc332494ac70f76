"""Runs as their folders tell of them, finished or not."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from fl_split.spec_errors import SpecError
from simulations.report.labels import natural
from simulations.runs.checkpoint import FREE
from simulations.runs.experiment import Experiment
from simulations.runs.files import DamagedError, read_rounds, read_summary
from simulations.runs.results import COMPARISON, EXPERIMENT, ROUNDS, SUMMARY
from simulations.runs.settings import read_toml

UNFINISHED = "unfinished"
"""Flaw of a run without a summary."""

NUMBERED = re.compile(r"run-\d+")
"""Names of runs to which nobody has given one."""


@dataclass(frozen=True)
class FinishedRun:
    """What one output folder holds.

    Attributes
    ----------
    name : str
        The folder, from the one that the report was asked for.
    flaw : str
        Why the run is not counted; empty if it is.
    is_going_on : bool
        Whether what it has reached so far counts.
    title : str
        What its comparison calls it; empty if it is in none, or was numbered there.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    rounds: pd.DataFrame
    flaw: str
    is_going_on: bool = False
    title: str = ""

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.settings.get("seed", 0))

    def total(self, key: str) -> float:
        """Return a number of the summary; nan where it has none."""
        value = self.summary.get(key)
        return float("nan") if value is None else float(value)

    def read_table(self, file: str) -> pd.DataFrame | None:
        """Read another table of the run, if it is there and has rows."""
        frame = _table(self.folder / file)
        return None if frame is None or frame.empty else frame


def run_names(file: Path) -> list[str]:
    """Return the names of the runs of a comparison, from its table; none if that is not there."""
    try:
        table = pd.read_csv(file, usecols=["run"], dtype=str, keep_default_na=False)
    except (OSError, ValueError):  # pandas' own errors are ValueErrors
        return []
    return [*table["run"]]


def find_runs(folder: Path) -> list[FinishedRun]:
    """Read all runs in and below `folder`; raise ValueError if there are none."""
    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r}")
    places = [path.parent for path in folder.rglob(EXPERIMENT)]
    if not places:
        raise ValueError(f"no runs in {str(folder)!r}: no {EXPERIMENT} in it or below")
    root = folder.resolve().name
    named = {f"{root}/{place.relative_to(folder).as_posix()}": place for place in places}
    return [_read(name.removesuffix("/."), named[name]) for name in sorted(named, key=natural)]


def _read(name: str, folder: Path) -> FinishedRun:
    defaults = {key: field.default for key, field in Experiment.model_fields.items()}
    settings, summary, rounds = defaults, {}, pd.DataFrame()
    try:
        settings = {**defaults, **read_toml(folder / EXPERIMENT)}  # keys may be newer than the run
        summary = read_summary(folder / SUMMARY)
        status = summary.get("status", UNFINISHED)
        rounds = read_rounds(folder / ROUNDS)
        flaw = "" if status == "complete" else status
        if rounds.empty:
            flaw = flaw or ("no rounds" if (folder / ROUNDS).exists() else f"no {ROUNDS}")
    except (DamagedError, SpecError) as error:
        fault = error.fault if isinstance(error, DamagedError) else str(error)
        flaw = fault.replace(f"{folder}{os.sep}", "")  # which the name of the run tells
    return FinishedRun(name, folder, settings, summary, rounds, flaw, title=_title(folder))


def _title(folder: Path) -> str:
    """Return what the comparison that a run is part of calls it, unless it only numbers it."""
    names = run_names(folder.parent / COMPARISON)
    return folder.name if folder.name in names and not NUMBERED.fullmatch(folder.name) else ""


def _table(path: Path) -> pd.DataFrame | None:
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError):  # pandas' own errors are ValueErrors
        return None


def unique(runs: list[FinishedRun]) -> list[FinishedRun]:
    """Drop folders that were given twice; mark runs whose seed their configuration has."""
    found: dict[Path, FinishedRun] = {}
    seen: dict[str, str] = {}
    for run in runs:
        place = run.folder.resolve()
        if place in found:
            continue
        same = str(sorted((k, str(v)) for k, v in run.settings.items() if k not in FREE))
        flaw = run.flaw or (f"same experiment as {seen[same]}" if same in seen else "")
        if not flaw:
            seen[same] = run.name
        found[place] = replace(run, flaw=flaw)
    return list(found.values())
