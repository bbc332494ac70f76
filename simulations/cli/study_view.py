"""A study on the terminal: its cost, its cells while they run, and what came of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import pandas as pd
import typer
from rich.console import Group
from rich.live import Live
from rich.progress import track
from rich.table import Table

from simulations.cli.terminal import AROUND, complain, door, err, explain, out, show_decisions
from simulations.runs.experiment_data import view
from simulations.runs.lock import alone
from simulations.runs.paths import chosen_folder
from simulations.runs.signals import exit_code, terminable
from simulations.studies import study
from simulations.studies.cell_process import LOG
from simulations.studies.cells import LOCK, Cell, faults
from simulations.studies.cost import Estimator, cost_table
from simulations.studies.processes import CellProcesses
from simulations.studies.watch import headline, snapshot_table

Conclude = Callable[[pd.DataFrame, Path], Table]
"""Makes what a study shows in the end, of the rows of all cells and their folder."""


def run_study(
    found: Sequence[Cell],
    *,
    axes: Collection[str],
    conclude: Conclude,
    out_dir: str | None,
    jobs: int,
    dry_run: bool,
) -> None:
    """Run the cells that are not finished yet, or show what they will cost.

    Other runs in their folder may differ in `axes` alone.
    """
    with door():
        folder = chosen_folder(out_dir, found[0].experiment.out)
        missing = study.missing(found, folder, axes)
        for fault in faults(found, folder):
            err.print(f"warning: {fault}", markup=False, highlight=False, soft_wrap=True)
        if dry_run:
            _show_cost(found, missing)
            return
        checked = _tracked(study.combinations(missing), "checking")
        processes = study.cell_processes(missing, checked, folder, jobs)
        with alone(folder, LOCK):
            rows = _run(processes, found, folder)
            shown = conclude(rows, folder)
    out.print(shown)
    if lost := study.cells_that_lost_clients(rows, folder):
        err.print(lost, markup=False, highlight=False, soft_wrap=True)
    if mixed := study.unlike_cpus(found, folder):
        err.print(f"warning: {mixed}", markup=False, highlight=False, soft_wrap=True)
    for name, reason in processes.failed.items():
        complain(f"{name}: {reason}; its log: {folder / name / LOG}")
    out.print("Results:", str(folder), markup=False, highlight=False, soft_wrap=True)
    if processes.failed:
        raise typer.Exit(1)


def _run(processes: CellProcesses, found: Sequence[Cell], folder: Path) -> pd.DataFrame:
    """Run all cells to their ends, or to Ctrl-C; return their rows, which stand in a file too."""
    if done := len(found) - len(processes.cells):
        out.print(f"{done} of {len(found)} cells are finished already")
    show_decisions(view(cell.experiment).decisions for cell in processes.cells)
    explain([cell.experiment for cell in processes.cells])
    try:
        with terminable(), Live(console=out, auto_refresh=False, transient=True) as live:
            return study.run_cells(processes, found, folder, partial(_show, live))
    except KeyboardInterrupt as error:
        advice = f"to go on: the same command, --out {folder}"
        err.print(f"stopped; {advice}", markup=False, soft_wrap=True)
        raise typer.Exit(exit_code(error)) from None


def _show(live: Live, seen: study.StudyState) -> None:
    """Show all cells in one view; without a terminal print a line for each new status."""
    if out.is_terminal:
        left = seen.seconds_left
        rest = "" if not left else f"; some {timedelta(seconds=round(left))} left"
        table = snapshot_table(seen.cells, out.width, max(3, out.height - AROUND))
        live.update(Group(table, headline(seen.cells) + rest), refresh=True)
        return
    for run in seen.changed:
        accuracy = f", accuracy {100 * run.accuracies[-1]:.1f} %" if run.accuracies else ""
        out.print(f"{run.name}: {run.status}{accuracy}", markup=False, highlight=False)


def _show_cost(found: Sequence[Cell], missing: Sequence[Cell]) -> None:
    """Show what every cell that is left to be run will cost."""
    start, estimate = time.process_time(), Estimator()  # imports, which every cell begins with too
    tracked = _tracked(missing, "estimating")
    costs = [(cell, estimate(study.prepared(cell))) for cell in tracked]
    table, text = cost_table(found, costs, start, out.width)
    out.print(table)
    out.print(text)


def _tracked(cells: Sequence[Cell], doing: str) -> Iterable[Cell]:
    return track(cells, doing, console=err, transient=True, disable=not err.is_terminal)
