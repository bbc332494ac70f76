"""Many small runs at once: cells of a study as processes, within the cores and the memory."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from simulations.engines.memory import available_bytes, resident_bytes
from simulations.runs import checkpoint
from simulations.runs.experiment import Experiment
from simulations.runs.files import DamagedError, OutputError, make_folder, read_cells
from simulations.runs.results import ROUNDS, UNWRITTEN
from simulations.studies.cell_process import LOG, Work, run_cell
from simulations.studies.cells import Cell, holds_run, is_complete, summary_of

MARGIN = 1.25
"""Free memory that a new cell must find, over the most that one has taken so far."""

PATIENCE = 60.0
"""Seconds that interrupted cells have to write what they have."""


@dataclass(frozen=True)
class RunningCell:
    """A cell that is running as a process."""

    cell: Cell
    folder: Path
    process: BaseProcess

    @property
    def pid(self) -> int:
        """Number of the process."""
        assert self.process.pid is not None  # the process has been started
        return self.process.pid


@dataclass(frozen=True)
class Memory:
    """Measures memory in bytes: of a process with its children, and free memory."""

    resident: Callable[[int], int] = resident_bytes
    available: Callable[[], int] = available_bytes


class ForkServer:
    """Starts cells as processes, forked from a server that has imported all libraries.

    Each trains inline, with one torch thread, since many small runs make better use of cores
    than one run spread over them. A cell that names a Ray cluster runs there.

    Parameters
    ----------
    folder : Path
        Holds a folder for each cell.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        has_server = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
        self._fork: Any = multiprocessing.get_context("forkserver" if has_server else "spawn")
        self._fork.set_forkserver_preload([run_cell.__module__])
        if has_server:
            with _one_thread(), _without_main():
                forkserver.ensure_running()
        self._lifeline, self._held = self._fork.Pipe(duplex=False)  # breaks when we die

    def __call__(self, cell: Cell) -> RunningCell:
        """Start a cell: from its checkpoint if it has one, else in an empty folder.

        Raises
        ------
        OutputError
            The folder cannot be made, or holds a run that this version cannot read.
        SpecError
            The folder holds a run of another experiment.
        """
        folder = self.folder / cell.name
        resumes, is_damaged = False, False
        try:
            is_there = holds_run(folder, cell.experiment)
        except DamagedError:  # it was said before
            is_there = is_damaged = True
        if is_there:
            resumes = not is_damaged and can_resume(folder, cell.experiment)
            if not resumes:
                shutil.rmtree(folder)
        make_folder(folder)
        engine = cell.experiment.engine if uses_cluster(cell) else "inline()"
        values = {**cell.experiment.model_dump(), "engine": engine, "out": str(folder)}
        work = Work(Experiment.from_dict(values), cell.until, resumes)
        process = self._fork.Process(target=run_cell, args=(work, self._lifeline))
        with _without_main(), _one_thread():
            process.start()
        return RunningCell(cell, folder, process)


@dataclass
class CellProcesses:
    """Cells that wait, run and have ended; each :meth:`step` moves them on.

    Parameters
    ----------
    cells : sequence of Cell
        Those that are to be run, in this order.
    jobs : int
        Largest number of cells that run at once.
    need : int
        Bytes that a cell is expected to take, until some have been measured.
    start : callable
        Starts a cell; usually a :class:`ForkServer`.
    memory : Memory
        Measures what runs and what is left.

    Attributes
    ----------
    status : dict
        "running", "complete", "failed" or "stopped", by name; cells that wait have none.
    failed : dict
        Why a cell has failed, by name.
    """

    cells: Sequence[Cell]
    jobs: int
    need: int
    start: Callable[[Cell], RunningCell]
    memory: Memory = field(default_factory=Memory)
    running: list[RunningCell] = field(default_factory=list)
    status: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = list(self.cells)
        self._peaks: dict[int, int] = {}

    def step(self) -> bool:
        """Note which cells have ended and start those that fit; tell whether any is left."""
        for run in [run for run in self.running if not run.process.is_alive()]:
            self.running.remove(run)
            self._note(run)
        while self.waiting and len(self.running) < self.jobs and self._has_room():
            cell = self.waiting.pop(0)
            try:
                self.running.append(self.start(cell))
                self.status[cell.name] = "running"
            except (OSError, OutputError) as error:
                self.status[cell.name], self.failed[cell.name] = "failed", str(error)
        return bool(self.running or self.waiting)

    def stop(self) -> None:
        """Interrupt what runs, and wait until it has written what it has."""
        for run in self.running:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(run.pid, signal.SIGINT)
        for run in self.running:
            run.process.join(PATIENCE)
            run.process.kill()
            run.process.join()
            self.status[run.cell.name] = "complete" if is_complete(run.folder) else "stopped"
        self.running = []

    def _has_room(self) -> bool:
        """Tell whether memory is left for one more cell; the first cell always starts."""
        if not self.running:
            return True
        sizes = {run.pid: self.memory.resident(run.pid) for run in self.running}
        for pid, size in sizes.items():
            self._peaks[pid] = max(size, self._peaks.get(pid, 0))
        most = max(self.need, *self._peaks.values())
        to_come = sum(max(0, most - size) for size in sizes.values())
        return self.memory.available() - to_come > MARGIN * most

    def _note(self, run: RunningCell) -> None:
        name = run.cell.name
        if run.process.exitcode == 0 and is_complete(run.folder):
            self.status[name] = "complete"
        else:
            self.status[name] = "failed"
            self.failed[name] = _reason(run)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that start in the block have one thread, which torch reads at its import."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the script that started us: a new process would run it again.

    Nothing of it is needed there; classes that it defines travel with their code.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def uses_cluster(cell: Cell) -> bool:
    """Tell whether a cell names a Ray cluster to run on."""
    return bool(getattr(cell.experiment.parts.engine, "address", ""))


def can_resume(folder: Path, experiment: Experiment) -> bool:
    """Tell whether the run of an experiment in `folder` has a checkpoint that can be used."""
    with suppress(checkpoint.CheckpointError, DamagedError):
        _, found = checkpoint.read(folder, experiment.objects())
        read_cells(folder / ROUNDS, found.rounds)
        return True
    return False


def _reason(run: RunningCell) -> str:
    """Return what the log says about the end of a cell."""
    code = run.process.exitcode or 0
    log = run.folder / LOG
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if summary_of(run.folder).get("ended_by") == UNWRITTEN and not errors:
        return "it could not write its results; is the disk full?"
    return (errors or lines or [f"exit code {code}"])[-1]
