"""One cell of a study in a process of its own: what it runs, its log and its exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, TextIO

from simulations.runs.budget import parse_last
from simulations.runs.checkpoint import Checkpoint, read
from simulations.runs.experiment import Experiment
from simulations.runs.news import News, dropped_clients, early_end
from simulations.runs.quiet import quiet_libraries
from simulations.runs.run import STOPS, Stop, run, workers
from simulations.runs.setup import Setup, prepare
from strategies import RoundResult

LOG = "log.txt"


@dataclass(frozen=True)
class Work:
    """A cell as its process gets it.

    Attributes
    ----------
    experiment : Experiment
        With its output folder and the engine that it shall run on.
    until : sequence of str
        Specs of budgets that end the run, beside its own, when all of them are used up.
    resumes : bool
        Whether the run goes on from the checkpoint in its folder.
    """

    experiment: Experiment
    until: Sequence[str] = ()
    resumes: bool = False

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return Path(self.experiment.out)


def run_cell(work: Work, lifeline: Connection) -> NoReturn:
    """Run a cell in this process, which writes to the cell's log and dies with the study.

    The process leaves the terminal's group: the study itself hands on Ctrl-C. It ends when
    the other end of `lifeline` is closed, as the system does even if the study is killed.
    """
    if hasattr(os, "setsid"):  # not on Windows
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    log = (work.folder / LOG).open("a", encoding="utf-8", buffering=1)
    for stream in (1, 2):  # warnings and tracebacks too
        os.dup2(log.fileno(), stream)
    code = run_and_log(work, log)
    with suppress(OSError):
        log.close()
    sys.exit(code)


def run_and_log(work: Work, log: TextIO) -> int:
    """Run a cell and write lines about it to `log`; return the exit code."""
    try:
        quiet_libraries()
        try:
            setup = prepare(work.experiment)
            resumed = read(work.folder, work.experiment.objects())[1] if work.resumes else None
        except ValueError as error:
            _tell(log, f"error: {error}")
            return 2
        _train(setup, work, resumed, log)
    except STOPS as error:
        stop = Stop.because(error, work.folder, [work.folder])
        _tell(log, f"error: {stop.text}" if stop.is_error else stop.text)
        return stop.code
    return 0


def _train(setup: Setup, work: Work, resumed: Checkpoint | None, log: TextIO) -> None:
    rounds = setup.experiment.rounds
    news = News(work.folder.name, rounds)
    if resumed:
        _tell(log, f"{work.folder}: {resumed.rounds} of {rounds} rounds done")
        news.go_on(work.folder, resumed.rounds)

    def watch(row: Mapping[str, Any], result: RoundResult) -> None:
        _tell(log, *dropped_clients(result), *news.line(row, news.of_round(row)))

    with workers([setup]) as session:
        budget = parse_last(work.until)
        summary = run(setup, session, watch=watch, resumed=resumed, budget=budget)
    _tell(log, *early_end(summary))


def _tell(log: TextIO, *lines: str) -> None:
    """Write each text as one line, at once; on a full disk the run goes on without."""
    with suppress(OSError):
        log.writelines(f"{' '.join(line.split())}\n" for line in lines)
        log.flush()


def _die_with(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv()
    os._exit(1)
