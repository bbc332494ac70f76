"""Pages of runs that still go on: what counts of them, and what the page says of itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from simulations.report.finished import UNFINISHED, FinishedRun
from simulations.report.runs import IGNORED
from simulations.runs.columns import METRICS, PAYLOAD
from simulations.runs.files import DamagedError, read_rounds
from simulations.runs.results import ROUNDS


@dataclass(frozen=True)
class Live:
    """What a page says that is not the last: a sentence, and after how many seconds it reloads.

    With zero seconds it does not reload.
    """

    text: str
    every: int = 0


def with_progress(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Let runs that go on count, where no run of their configuration is complete.

    Of several the furthest counts alone: a mean over seeds would end where the slowest is.
    """
    complete = {_settings(run) for run in runs if not run.flaw}
    furthest: dict[str, FinishedRun] = {}
    for run in map(_so_far, runs):
        key = _settings(run)
        if run.is_going_on and key not in complete:
            furthest[key] = max(furthest.get(key, run), run, key=lambda one: len(one.rounds))
    counted = {run.folder: run for run in furthest.values()}
    return [counted.get(run.folder, run) for run in runs]


def _so_far(run: FinishedRun) -> FinishedRun:
    """Return a run that goes on as if it had ended after its last whole row; others unchanged."""
    path = run.folder / ROUNDS
    if run.flaw != UNFINISHED or not path.exists():
        return run
    try:
        rounds = read_rounds(path)
    except DamagedError:
        return replace(run, flaw=f"{ROUNDS} is damaged")
    if rounds.empty:
        return run
    return replace(run, rounds=rounds, summary=_summary(rounds), flaw="", is_going_on=True)


def _summary(rounds: pd.DataFrame) -> dict[str, Any]:
    """Return what summary.json would say of these rounds, as far as reports read it."""
    accuracy = rounds["accuracy"]
    sums = {m.name: float(rounds[m.name].sum()) for m in METRICS if m.adds_up and m.name in rounds}
    plain = 2 * sums.get("smashed_bytes", math.nan)
    ratio = sum(sums.get(key, math.nan) for key in PAYLOAD) / plain if plain else math.nan
    return {
        "final_accuracy": float(accuracy.iloc[-1]),
        "best_accuracy": float(accuracy.max()),
        "ratio": None if math.isnan(ratio) else ratio,
        **sums,
    }


def _settings(run: FinishedRun) -> str:
    """All that makes a configuration."""
    return str(sorted((key, str(v)) for key, v in run.settings.items() if key not in IGNORED))
