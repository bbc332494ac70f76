"""Studies: find the cells that are not finished, and run them to their ends.

Nothing is printed here: whoever shows a study gets a :class:`StudyState` at it every second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from simulations.engines.memory import resident_bytes
from simulations.runs.files import WriteError, write_whole
from simulations.runs.provenance import unlike
from simulations.runs.results import STUDY, check_empty, check_folder
from simulations.runs.setup import Setup, prepare
from simulations.runs.signals import undisturbed
from simulations.studies.cells import (
    Cell,
    check_others,
    holds_cells,
    is_finished,
    study_frame,
    summary_of,
)
from simulations.studies.processes import CellProcesses, ForkServer, uses_cluster
from simulations.studies.watch import Pace, Snapshot, read_snapshot
from strategies.server.threads import available_cores

INTERVAL = 1.0
"""Seconds between two looks at a study."""


@dataclass(frozen=True)
class StudyState:
    """All cells of a study at one moment.

    Attributes
    ----------
    changed : sequence of Snapshot
        The cells whose status is another than at the last look.
    seconds_left : float, optional
        What the rest takes; None before anything is known.
    """

    cells: Sequence[Snapshot]
    changed: Sequence[Snapshot]
    seconds_left: float | None


def missing(found: Sequence[Cell], folder: Path, axes: Collection[str]) -> list[Cell]:
    """Return the cells that `folder` does not hold yet; its other runs may differ in `axes` alone.

    Raises
    ------
    ValueError
        The folder cannot be used: it holds other files, or runs of another study.
    """
    check_folder(folder)
    check_others(folder, found[0].experiment.model_dump(), axes)
    if not holds_cells(folder):
        check_empty(folder)
    return [cell for cell in found if not is_finished(folder / cell.name, cell)]


def prepared(cell: Cell) -> Setup:
    """Prepare a cell; ValueError names the cell."""
    try:
        return prepare(cell.experiment)
    except ValueError as error:
        raise ValueError(f"{cell.name}: {error}") from None


def combinations(cells: Sequence[Cell]) -> list[Cell]:
    """Return one cell of each combination of settings, without its other seeds."""
    first_seeds = {str({**cell.settings, "seed": None}): cell for cell in reversed(cells)}
    return [*first_seeds.values()]


def cell_processes(
    cells: Sequence[Cell], checked: Iterable[Cell], folder: Path, jobs: int
) -> CellProcesses:
    """Prepare the cells in `checked`, and return what will run `cells`, at most `jobs` at once.

    0 jobs are as many as there are cores. Cells on a Ray cluster run one after the other:
    each takes all the CPUs that it finds free.

    Raises
    ------
    ValueError
        A cell cannot work; the message names the cell.
    """
    for cell in checked:
        prepared(cell)
    need = resident_bytes(os.getpid())  # with data and model: about what a cell will take
    is_alone = bool(cells) and uses_cluster(cells[0])
    return CellProcesses(
        cells, 1 if is_alone else jobs or available_cores(), need, ForkServer(folder)
    )


def follow(
    processes: CellProcesses,
    found: Sequence[Cell],
    folder: Path,
    show: Callable[[StudyState], None],
) -> None:
    """Run all cells to their ends; call `show` every second, and keep the study's file true."""

    def snapshot(cell: Cell) -> Snapshot:
        status = processes.status.get(cell.name, "waiting")
        seen = read_snapshot(folder / cell.name, cell.name, status)
        return replace(seen, status=status)  # a summary may be that of an earlier stop

    seen = {cell.name: snapshot(cell) for cell in found}
    pace, total = Pace([*seen.values()]), sum(cell.experiment.rounds for cell in found)
    while True:
        before = dict(processes.status)
        goes_on = processes.step()
        changed = {n for n, status in processes.status.items() if status != before.get(n)}
        for cell in found:
            if cell.name in changed or processes.status.get(cell.name) == "running":
                seen[cell.name] = snapshot(cell)
        if changed:
            with suppress(WriteError):  # the end tells it; cells may have a disk of their own
                write_rows(processes, found, folder)
        cells = [*seen.values()]
        told = [one for one in cells if one.name in changed]
        show(StudyState(cells, told, pace.seconds_left(cells, total)))
        if not goes_on:
            return
        time.sleep(INTERVAL)


def run_cells(
    processes: CellProcesses,
    found: Sequence[Cell],
    folder: Path,
    show: Callable[[StudyState], None],
) -> pd.DataFrame:
    """Run all cells to their ends; return their rows, which stand in the study's file too.

    Whatever happens, cells that still run are interrupted, and the file is written.
    """
    waiting = {cell.name for cell in processes.cells}
    processes.status.update({c.name: "complete" for c in found if c.name not in waiting})
    try:
        follow(processes, found, folder, show)
    finally:
        with undisturbed(forgets=True):  # else what the cells have would be lost
            processes.stop()
            rows = write_rows(processes, found, folder)
    return rows


def write_rows(processes: CellProcesses, found: Sequence[Cell], folder: Path) -> pd.DataFrame:
    """Write a row for each cell into the study's file; return them."""
    rows = study_frame(found, folder, processes.status)
    write_whole(folder / STUDY, rows.to_csv(index=False).encode())
    return rows


def cells_that_lost_clients(rows: pd.DataFrame, folder: Path) -> str:
    """Name the cells that lost clients, since slow machines lose more; empty if none did."""
    lost = rows[pd.to_numeric(rows["dropped"]) > 0]  # none, where no cell has ended
    if lost.empty:
        return ""
    cells = ", ".join(lost["cell"][:3]) + (", ..." if len(lost) > 3 else "")
    return (
        f"{len(lost)} of {len(rows)} cells lost clients in some round ({cells}; column "
        "dropped; why: clients.parquet). If they were too slow, and not at fault, remove the "
        "cells' folders and give the same command with a longer timeout=SECONDS, "
        f"--out {folder}"
    )


def unlike_cpus(found: Sequence[Cell], folder: Path) -> str:
    """Say which kinds of CPU the cells ran on if there are several; else return nothing."""
    return unlike(summary_of(folder / cell.name) for cell in found)
