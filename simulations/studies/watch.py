"""The state of runs, read from their folders while the runs write to them."""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.filesize import decimal
from rich.table import Table

from fl_split.spec_errors import SpecError
from simulations.report.text_table import text_table
from simulations.runs.checkpoint import FILE
from simulations.runs.columns import SENT
from simulations.runs.files import (
    DamagedError,
    OutputError,
    check_columns,
    read_rounds,
    read_summary,
)
from simulations.runs.lock import is_abandoned
from simulations.runs.results import EXPERIMENT, ROUNDS, STUDY, SUMMARY
from simulations.runs.settings import read_toml
from simulations.studies.cells import LOCK

BARS = "▁▂▃▄▅▆▇█"
SPARKS, CURVE = 20, "0 to 100 %"
"""Characters of a curve, and the title of its column."""

TITLES = ("run", "round", "accuracy", CURVE, "sent", "s/round", "status")

LATE = 5
"""Number of last rounds from which the present speed of a run is taken."""

GOING_ON = {"running", "waiting"}
DEAD, DAMAGED, NOT_BEGUN = "dead", "damaged", "not begun"
ORDER = [
    *("running", DEAD, DAMAGED, "failed", "stopped", "interrupted", "complete"),
    *("waiting", NOT_BEGUN),
]
"""What runs are, those first that are looked for first; a dead one ended without a word."""


@dataclass(frozen=True)
class Snapshot:
    """A run as its folder shows it at one moment; `silent_seconds` since its last row.

    `remark` is a line about what is wrong with it, and what to do; usually empty.
    """

    name: str
    status: str
    total: int = 0
    accuracies: Sequence[float] = ()
    sent: int = 0
    seconds_per_round: float = 0.0
    silent_seconds: float = 0.0
    remark: str = ""

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return len(self.accuracies)


def read_snapshot(folder: Path, name: str, status: str = "") -> Snapshot:
    """Read one run; `status` is what the caller knows of it."""
    if not (folder / EXPERIMENT).exists():
        return Snapshot(name, status or "waiting")
    newest = max(p.stat().st_mtime for p in _files(folder))
    numbers: dict[str, Any] = {}
    fault = ""
    try:
        numbers = _numbers(read_rounds(folder / ROUNDS))
        numbers["total"] = int(read_toml(folder / EXPERIMENT).get("rounds", 0))
        found = _status(folder)
    except (SpecError, TypeError, DamagedError) as error:
        found, fault = DAMAGED, getattr(error, "fault", str(error))
    told = found if status in {"", "running"} or fault else status
    return Snapshot(
        name,
        told,
        **numbers,
        silent_seconds=max(0.0, time.time() - newest),
        remark=fault or (_advice(folder) if told == DEAD else ""),
    )


def _numbers(rows: pd.DataFrame) -> dict[str, Any]:
    """Return what a run has reached, of its table."""
    seconds = list(rows["wall_seconds"][-LATE:]) if "wall_seconds" in rows else []
    return {
        "accuracies": [float(value) for value in rows["accuracy"]],
        "sent": int(rows[[*SENT]].to_numpy().sum()),
        "seconds_per_round": statistics.median(seconds) if seconds else 0.0,
    }


def look_below(folder: Path) -> list[Snapshot]:
    """Read all runs in and below `folder`; those of a study also before they begin."""
    plan = folder / STUDY
    with suppress(OutputError):  # a damaged one is told below
        if plan.exists():
            is_over = is_abandoned(folder, LOCK)
            seen = [read_snapshot(folder / name, name, status) for name, status in _plan(plan)]
            return [
                replace(one, status=NOT_BEGUN) if is_over and one.status == "waiting" else one
                for one in seen
            ]
    found = sorted(path.parent for path in folder.rglob(EXPERIMENT))
    return [
        *_damaged_plan(plan),
        *(read_snapshot(run, run.relative_to(folder).as_posix(), "") for run in found),
    ]


def _plan(path: Path) -> list[tuple[str, str]]:
    """Return name and status of each cell, of a study's file."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        check_columns(path, rows.fieldnames or [], ("cell", "status"))
        return [(row["cell"], row["status"]) for row in rows]


def _damaged_plan(path: Path) -> list[Snapshot]:
    """Return a line about a study's file that cannot be read."""
    try:
        if path.exists():
            _plan(path)
    except OutputError as error:
        return [Snapshot(path.name, DAMAGED, remark=getattr(error, "fault", str(error)))]
    return []


def remarks(snapshots: Sequence[Snapshot]) -> list[str]:
    """Return a line for each run with which something is wrong."""
    return [f"{seen.name}: {seen.remark}" for seen in snapshots if seen.remark]


def snapshot_table(snapshots: Sequence[Snapshot], width: int, most: int | None = None) -> Table:
    """Show at most `most` runs, running ones first.

    If `width` characters are too few, names are kept and curves are left out.
    """
    ordered = sorted(snapshots, key=lambda seen: _rank(seen.status))
    shown = ordered[:most]
    rest = len(ordered) - len(shown)
    return text_table(
        TITLES,
        [cells_of(seen) for seen in shown], width, spare=(CURVE, "s/round"),
        left=(CURVE, "status"), caption=f"and {rest} more" if rest else None,
    )  # fmt: skip


def headline(snapshots: Sequence[Snapshot]) -> str:
    """Count runs by status."""
    told = ["silent" if _is_silent(seen) else seen.status for seen in snapshots]
    counts = {status: told.count(status) for status in ["running", "silent", *ORDER[1:]]}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def is_over(snapshots: Sequence[Snapshot]) -> bool:
    """Tell whether nothing more is to come."""
    return not any(seen.status in GOING_ON for seen in snapshots)


def sparkline(values: Sequence[float], width: int = SPARKS) -> str:
    """Draw shares in 0..1 as at most `width` characters, each the last value of its part."""
    count = min(width, len(values))
    picked = [values[(number + 1) * len(values) // count - 1] for number in range(count)]
    top = len(BARS) - 1
    return "".join(BARS[max(0, min(top, int(value * len(BARS))))] for value in picked)


class Pace:
    """Estimates the time left from the rounds done since this object was made; `clock` in s."""

    def __init__(
        self, snapshots: Sequence[Snapshot], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._began, self._before = clock(), self._rounds(snapshots)

    def seconds_left(self, snapshots: Sequence[Snapshot], total: int) -> float | None:
        """Return what `total` rounds still need; None before anything is known."""
        done = self._rounds(snapshots)
        if done <= self._before:
            return None
        each = (self._clock() - self._began) / (done - self._before)
        return each * max(0, total - done)

    @staticmethod
    def _rounds(snapshots: Sequence[Snapshot]) -> int:
        """Count rounds; a run that ended early (by its budget) counts as all its rounds."""
        return sum(seen.rounds if seen.status in GOING_ON else seen.total for seen in snapshots)


def cells_of(seen: Snapshot) -> list[str]:
    """Return one run as a row of text, in the order of `TITLES`."""
    status = f"silent for {seen.silent_seconds:,.0f} s" if _is_silent(seen) else seen.status
    accuracy = f"{100 * seen.accuracies[-1]:.1f} %" if seen.accuracies else "-"
    return [
        seen.name,
        f"{seen.rounds}/{seen.total}" if seen.total else "-",
        accuracy,
        sparkline(seen.accuracies),
        decimal(seen.sent) if seen.rounds else "-",
        f"{seen.seconds_per_round:.2f}" if seen.rounds else "-",
        status,
    ]


def _is_silent(seen: Snapshot) -> bool:
    is_late = seen.silent_seconds > max(60, 5 * seen.seconds_per_round)
    return seen.status == "running" and is_late


def _rank(status: str) -> int:
    return ORDER.index(status) if status in ORDER else len(ORDER)


def _status(folder: Path) -> str:
    """Tell from its summary how a run ended, unless it has gone on since."""
    summary, rounds = folder / SUMMARY, folder / ROUNDS
    found = read_summary(summary)
    is_newer = rounds.exists() and found and rounds.stat().st_mtime > summary.stat().st_mtime
    if found and not is_newer:
        return str(found["status"])
    return DEAD if is_abandoned(folder) else "running"


def _advice(folder: Path) -> str:
    """Say what to do about a run whose process ended without a word."""
    if (folder.parent / STUDY).exists():
        todo = "to go on: the command of the study, with the same --out"
    elif (folder / FILE).exists():
        todo = f"to go on: fl-split resume {folder}"
    else:
        todo = "it left no checkpoint: begin again in another folder"
    return f"its process ended without a word (killed, or the machine stopped); {todo}"


def _files(folder: Path) -> list[Path]:
    return [path for name in (EXPERIMENT, ROUNDS, SUMMARY) if (path := folder / name).exists()]
