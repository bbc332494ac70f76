"""Many small runs at once: cells of a study as processes, within the cores and the memory."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from simulations.engines.memory import available_bytes, resident_bytes
from simulations.runs import checkpoint
from simulations.runs.results import OutputError, make_folder
from simulations.studies.cells import Cell, holds_run, is_complete

LOG, CONFIG = "log.txt", "cell.toml"

MARGIN = 1.25
"""Free memory that a new cell must find, over the most that one has taken so far."""

PATIENCE = 60.0
"""Seconds that interrupted cells have to write what they have."""

PRELOADED = [
    "simulations.cli.main",
    "simulations.clients.client_app",
    "simulations.runs.server_app",
]
"""What cells need, imported once: they are forked from a process that has it."""


@dataclass
class Run:
    """A cell that is running as a process."""

    cell: Cell
    folder: Path
    process: BaseProcess


@dataclass
class Crowd:
    """Cells that wait, run and have ended; each :meth:`step` moves them on.

    A cell is a process that trains inline, with one torch thread, since many small runs make better
    use of cores than one run spread over them. Cells that name a Ray cluster run there, one
    after the other: each takes all the CPUs that it finds free.

    Parameters
    ----------
    cells : sequence of Cell
        Those that are to be run, in this order.
    folder : Path
        Holds a folder for each.
    jobs : int
        Most cells at once.
    need : int
        Bytes that a cell is expected to take, until some have been measured.
    """

    cells: Sequence[Cell]
    folder: Path
    jobs: int
    need: int
    running: list[Run] = field(default_factory=list)
    status: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = list(self.cells)
        os.environ["OMP_NUM_THREADS"] = "1"  # which torch reads when it is imported
        self._fork = multiprocessing.get_context("forkserver")
        self._fork.set_forkserver_preload(PRELOADED)
        self._lifeline, self._held = self._fork.Pipe(duplex=False)  # breaks when we die
        self._peaks: dict[int, int] = {}

    def step(self) -> bool:
        """Note what has ended, start what there is room for; tell whether something goes on."""
        for run in [run for run in self.running if not run.process.is_alive()]:
            self.running.remove(run)
            self._note(run)
        while self.waiting and len(self.running) < self.jobs and self._has_room():
            cell = self.waiting.pop(0)
            try:
                self._start(cell)
            except (OSError, OutputError) as error:
                self.status[cell.name], self.failed[cell.name] = "failed", str(error)
        return bool(self.running or self.waiting)

    def stop(self) -> None:
        """Interrupt what runs, and wait until it has written what it has."""
        for run in self.running:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(_pid(run), signal.SIGINT)
        for run in self.running:
            run.process.join(PATIENCE)
            run.process.kill()
            run.process.join()
            self.status[run.cell.name] = "complete" if is_complete(run.folder) else "stopped"
        self.running = []

    def _has_room(self) -> bool:
        """Tell whether memory is left for one more; one always runs."""
        if not self.running:
            return True
        sizes = {_pid(run): resident_bytes(_pid(run)) for run in self.running}
        for pid, size in sizes.items():
            self._peaks[pid] = max(size, self._peaks.get(pid, 0))
        most = max(self.need, *self._peaks.values())
        to_come = sum(max(0, most - size) for size in sizes.values())
        return available_bytes() - to_come > MARGIN * most

    def _start(self, cell: Cell) -> None:
        folder = self.folder / cell.name
        engine = cell.experiment.engine if uses_cluster(cell) else "inline()"
        if holds_run(folder, cell.experiment) and can_resume(folder):
            command = ["resume", str(folder)]
        else:
            if holds_run(folder, cell.experiment):
                shutil.rmtree(folder)
            make_folder(folder)
            (folder / CONFIG).write_text(cell.experiment.to_toml(), encoding="utf-8")
            command = ["run", str(folder / CONFIG), "--out", str(folder)]
        command += ["--engine", engine, *(f"--until={spec}" for spec in cell.until)]
        arguments = (command, str(folder / LOG), self._lifeline)
        process = self._fork.Process(target=_run_cell, args=arguments)
        process.start()
        self.running.append(Run(cell, folder, process))
        self.status[cell.name] = "running"

    def _note(self, run: Run) -> None:
        name = run.cell.name
        if run.process.exitcode == 0 and is_complete(run.folder):
            self.status[name] = "complete"
        else:
            self.status[name] = "failed"
            self.failed[name] = _reason(run)


def uses_cluster(cell: Cell) -> bool:
    """Tell whether a cell names a Ray cluster to run on."""
    return bool(getattr(cell.experiment.build("engine"), "address", ""))


def can_resume(folder: Path) -> bool:
    """Tell whether the run in `folder` has a checkpoint that can be used."""
    with suppress(checkpoint.CheckpointError):
        checkpoint.read(folder)
        return True
    return False


def _run_cell(arguments: list[str], log: str, lifeline: Connection) -> None:
    """Be ``fl-split`` in a process of its own, which writes to `log` and dies with the study.

    Ctrl-C is the study's to hand on.
    """
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(file, stream)
    from simulations.cli.main import app

    app(arguments)


def _die_with(lifeline: Connection) -> None:
    """Wait for the other end to break, as it does even if the study is killed."""
    with suppress(EOFError, OSError):
        lifeline.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def _pid(run: Run) -> int:
    assert run.process.pid is not None  # it has been started
    return run.process.pid


def _reason(run: Run) -> str:
    """What the log says about the end of a cell."""
    code = run.process.exitcode or 0
    log = run.folder / LOG
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return (errors or lines or [f"exit code {code}"])[-1]
