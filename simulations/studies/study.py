"""Studies: cells checked, estimated, run several at once, and shown while they run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pandas as pd
import typer
from rich.console import Group
from rich.filesize import decimal
from rich.live import Live
from rich.progress import track
from rich.table import Table

from simulations.cli.terminal import (
    AROUND,
    INTERVAL,
    chosen_folder,
    complain,
    door,
    err,
    explain,
    of,
    out,
)
from simulations.engines.memory import resident_bytes
from simulations.report.text_table import sheet
from simulations.runs.lock import alone
from simulations.runs.provenance import unlike
from simulations.runs.results import STUDY, SUMMARY, check_empty, check_folder
from simulations.runs.setup import Setup, prepare
from simulations.studies.cells import LOCK, Cell, check_others, frame, holds_cells, is_finished
from simulations.studies.cost import Estimator
from simulations.studies.processes import LOG, Crowd, uses_cluster
from simulations.studies.watch import Pace, Snapshot, headline, look, table
from strategies.server.threads import available_cores

Conclude = Callable[[pd.DataFrame, Path], Table]
"""Makes what a study shows in the end, of the rows of all cells and their folder."""


def run_study(
    found: Sequence[Cell],
    *,
    axes: Collection[str],
    conclude: Conclude,
    out_dir: Path | None,
    jobs: int,
    dry_run: bool,
) -> None:
    """Run the cells that are not finished yet, or show what they will cost.

    Other runs in their folder may differ in `axes` alone.
    """
    with door():
        folder = chosen_folder({"out": found[0].experiment.out}, out_dir)
        check_folder(folder)
        check_others(folder, found[0].experiment.model_dump(), axes)
        if not holds_cells(folder):
            check_empty(folder)
        missing = [cell for cell in found if not is_finished(folder / cell.name, cell)]
        if dry_run:
            _show_cost(found, missing)
            return
        crowd = _crowd(missing, folder, jobs)
        with alone(folder, LOCK):
            rows = _run(crowd, found)
            shown = conclude(rows, folder)
    out.print(shown)
    warn_of_losses(rows, folder)
    warn_of_cpus(found, folder)
    for name, reason in crowd.failed.items():
        complain(f"{name}: {reason}; its log: {folder / name / LOG}")
    out.print("Results:", str(folder), markup=False, highlight=False, soft_wrap=True)
    if crowd.failed:
        raise typer.Exit(1)


def warn_of_losses(rows: pd.DataFrame, folder: Path) -> None:
    """Say which cells went on without some client: their numbers may be this machine's alone."""
    lost = rows[pd.to_numeric(rows["dropped"]) > 0]  # nothing, where no cell has ended
    if len(lost):
        cells = ", ".join(lost["cell"][:3]) + (", ..." if len(lost) > 3 else "")
        err.print(
            f"{len(lost)} of {len(rows)} cells lost clients in some round ({cells}; column "
            "dropped; why: clients.parquet). If they were too slow, and not at fault, remove the "
            "cells' folders and give the same command with a longer timeout=SECONDS, "
            f"--out {folder}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def warn_of_cpus(found: Sequence[Cell], folder: Path) -> None:
    """Say if cells were run on unlike kinds of CPU: a study may go on on another machine."""
    files = [folder / cell.name / SUMMARY for cell in found]
    summaries = [json.loads(file.read_text()) for file in files if file.is_file()]
    if text := unlike(summaries):
        err.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)


def _crowd(missing: Sequence[Cell], folder: Path, jobs: int) -> Crowd:
    """Check all cells, and make who runs them."""
    need = _check(missing)
    is_alone = bool(missing) and uses_cluster(missing[0])
    return Crowd(missing, folder, 1 if is_alone else jobs or available_cores(), need)


def _run(crowd: Crowd, found: Sequence[Cell]) -> pd.DataFrame:
    """Run all cells to their ends, or to Ctrl-C; return their rows, which stand in a file too."""
    waiting = {cell.name for cell in crowd.cells}
    crowd.status.update({c.name: "complete" for c in found if c.name not in waiting})
    if done := len(found) - len(waiting):
        out.print(f"{done} of {len(found)} cells are finished already")
    explain([cell.experiment for cell in crowd.cells])
    try:
        _follow(crowd, found)
    except KeyboardInterrupt:
        err.print("stopping", markup=False)
        crowd.stop()
        advice = f"to go on: the same command, --out {crowd.folder}"
        err.print(f"stopped; {advice}", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    finally:
        crowd.stop()
        rows = frame(found, crowd.folder, crowd.status)
        rows.to_csv(crowd.folder / STUDY, index=False)
    return rows


def _tracked(cells: Sequence[Cell], doing: str) -> Iterable[Cell]:
    return track(cells, doing, console=err, transient=True, disable=not err.is_terminal)


def _prepare(cell: Cell) -> Setup:
    with of(cell.name):
        return prepare(cell.experiment)


def _check(missing: Sequence[Cell]) -> int:
    """Prepare a cell of each combination, without its other seeds; return bytes of memory.

    These are what this process takes with data and model: about what a cell will take.
    """
    combinations = {
        str({**cell.settings, "seed": None}): cell
        for cell in reversed(missing)  # the first of each stays
    }
    for cell in _tracked([*combinations.values()], "checking"):
        _prepare(cell)
    return resident_bytes(os.getpid())


def _follow(crowd: Crowd, found: Sequence[Cell]) -> None:
    """Run all cells to their ends, in one view; without a terminal a line for each end."""

    def look_at(cell: Cell) -> Snapshot:
        status = crowd.status.get(cell.name, "waiting")  # a summary may be that of an earlier stop
        return replace(look(crowd.folder / cell.name, cell.name, status), status=status)

    seen = {cell.name: look_at(cell) for cell in found}
    pace, total = Pace([*seen.values()]), sum(cell.experiment.rounds for cell in found)
    with Live(console=out, auto_refresh=False, transient=True) as live:
        while True:
            before = dict(crowd.status)
            goes_on = crowd.step()
            changed = {n for n, status in crowd.status.items() if status != before.get(n)}
            for cell in found:
                if cell.name in changed or crowd.status.get(cell.name) == "running":
                    seen[cell.name] = look_at(cell)
            if changed:
                frame(found, crowd.folder, crowd.status).to_csv(crowd.folder / STUDY, index=False)
            if out.is_terminal:
                live.update(_view([*seen.values()], pace, total), refresh=True)
            else:
                _announce([run for name, run in seen.items() if name in changed])
            if not goes_on:
                return
            time.sleep(INTERVAL)


def _view(seen: Sequence[Snapshot], pace: Pace, total: int) -> Group:
    left = pace.seconds_left(seen, total)
    rest = "" if not left else f"; some {timedelta(seconds=round(left))} left"
    return Group(table(seen, out.width, max(3, out.height - AROUND)), headline(seen) + rest)


def _announce(changed: Sequence[Snapshot]) -> None:
    for run in changed:
        accuracy = f", accuracy {100 * run.accuracies[-1]:.1f} %" if run.accuracies else ""
        out.print(f"{run.name}: {run.status}{accuracy}", markup=False, highlight=False)


def _show_cost(found: Sequence[Cell], missing: Sequence[Cell]) -> None:
    """Show what every cell that is still to be run will cost."""
    estimate, waiting, rows = Estimator(), {cell.name for cell in missing}, []
    start = time.process_time()  # imports: what every cell begins with too
    seconds, is_bound = start * len(missing), False
    for cell in _tracked(missing, "estimating"):
        cost = estimate(_prepare(cell))
        seconds += cost.seconds
        flops = f"{cost.client_flops / 1e12:,.3g}"
        sizes = [decimal(n) for n in (cost.payload_bytes, cost.head_bytes)]
        may_end = cost.is_bound or bool(cell.until)
        is_bound |= may_end
        cpu = f"{timedelta(seconds=round(cost.seconds))}{'*' if may_end else ''}"
        rows.append([cell.name, f"{cost.steps:,}", *sizes, flops, cpu])
    rows += [[cell.name, "finished", *[""] * 4] for cell in found if cell.name not in waiting]
    titles = ["cell", "steps", "payload", "weights", "client TFLOPs", "CPU"]
    caption = (
        "Payload and weights: both directions, all clients and rounds. CPU: training and "
        "evaluation on one thread, from a timed step, without the start."
        + (" *: a budget may end it earlier." if is_bound else "")
    )
    out.print(sheet(titles, rows, out.width, spare=("steps", "client TFLOPs"), caption=caption))
    cores = available_cores()
    about, in_all = "at most" if is_bound else "some", timedelta(seconds=round(seconds))
    out.print(
        f"{len(found)} cells, {len(missing)} to run: {about} {in_all} of CPU time, "
        f"{start:.0f} s of it per start of a run, on {cores} cores"
    )
