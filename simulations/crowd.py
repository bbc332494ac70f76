"""Many small runs at once: cells of a sweep as processes, within the cores and the memory."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from simulations import checkpoint
from simulations.cells import holds_run, is_complete
from simulations.memory import available_bytes, resident_bytes
from simulations.results import OutputError, make_folder
from simulations.sweep import Cell

LOG, CONFIG, LOCK = "log.txt", "cell.toml", ".sweep.lock"

MARGIN = 1.25
"""Free memory that a new cell must find, over the most that one has taken so far."""

PATIENCE = 60.0
"""Seconds that interrupted cells have to write what they have."""

DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""

_LIBC = ctypes.CDLL(None)  # loaded here, since a forked process should load nothing


@dataclass
class Run:
    """A cell that is running as a process."""

    cell: Cell
    folder: Path
    process: subprocess.Popen[bytes]


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
        self._peaks: dict[int, int] = {}

    def step(self) -> bool:
        """Note what has ended, start what there is room for; tell whether something goes on."""
        for run in [run for run in self.running if run.process.poll() is not None]:
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
            run.process.send_signal(signal.SIGINT)
        for run in self.running:
            try:
                run.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                run.process.kill()
                run.process.wait()
            self.status[run.cell.name] = "complete" if is_complete(run.folder) else "stopped"
        self.running = []

    def _has_room(self) -> bool:
        """Tell whether memory is left for one more; one always runs."""
        if not self.running:
            return True
        sizes = {run.process.pid: resident_bytes(run.process.pid) for run in self.running}
        for pid, size in sizes.items():
            self._peaks[pid] = max(size, self._peaks.get(pid, 0))
        most = max(self.need, *self._peaks.values())
        to_come = sum(max(0, most - size) for size in sizes.values())
        return available_bytes() - to_come > MARGIN * most

    def _start(self, cell: Cell) -> None:
        folder = self.folder / cell.name
        engine = cell.experiment.engine if uses_cluster(cell) else "inline()"
        if holds_run(folder, cell.experiment.model_dump()) and can_resume(folder):
            command = ["resume", str(folder)]
        else:
            if holds_run(folder, cell.experiment.model_dump()):
                shutil.rmtree(folder)
            make_folder(folder)
            (folder / CONFIG).write_text(cell.experiment.to_toml(), encoding="utf-8")
            command = ["run", str(folder / CONFIG), "--out", str(folder)]
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "simulations.cli", *command, "--engine", engine],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is ours to hand on
                preexec_fn=_prepare_child,
            )
        self.running.append(Run(cell, folder, process))
        self.status[cell.name] = "running"

    def _note(self, run: Run) -> None:
        name = run.cell.name
        if run.process.returncode == 0 and is_complete(run.folder):
            self.status[name] = "complete"
        else:
            self.status[name] = "failed"
            self.failed[name] = _reason(run)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold `folder` for one sweep at a time.

    Raises
    ------
    OutputError
        Another one is running in it.
    """
    make_folder(folder)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(f"out: another sweep is running in {str(folder)!r}") from None
        yield


def uses_cluster(cell: Cell) -> bool:
    """Tell whether a cell names a Ray cluster to run on."""
    return bool(getattr(cell.experiment.build("engine"), "address", ""))


def can_resume(folder: Path) -> bool:
    """Tell whether the run in `folder` has a checkpoint that can be used."""
    with suppress(checkpoint.CheckpointError):
        checkpoint.read(folder)
        return True
    return False


def _prepare_child() -> None:
    """Die with the sweep, even if that is killed, and hear interrupts, even in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which Python takes as its own
    prctl = getattr(_LIBC, "prctl", None)
    if prctl is not None:
        prctl(DIE_WITH_PARENT, signal.SIGKILL)


def _reason(run: Run) -> str:
    """What the log says about the end of a cell."""
    code = run.process.returncode
    text = (run.folder / LOG).read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return (errors or lines or [f"exit code {code}"])[-1]
