"""Runs without a terminal: the command line and the cells of a study start theirs here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.clients import client_app
from simulations.engines.local_grid import EngineError, Session, WorkersLost
from simulations.runs import about_data, server_app
from simulations.runs.budget import Budget
from simulations.runs.checkpoint import FILE, Checkpoint
from simulations.runs.files import OutputError, WriteError, read_summary
from simulations.runs.lock import alone
from simulations.runs.observers import Observer
from simulations.runs.results import SUMMARY
from simulations.runs.server_app import LocalContext, Watch, output_folder
from simulations.runs.setup import Setup
from simulations.runs.signals import exit_code, terminable
from strategies import NoClientsLeft, TrainingFailed
from strategies.server.participants import AllLate

STOPS = (KeyboardInterrupt, EngineError, OutputError, NoClientsLeft, TrainingFailed)
"""Exceptions that stop a run early, which :class:`Stop` explains."""


@contextmanager
def workers(setups: Collection[Setup]) -> Iterator[Session]:
    """Hold the folders of all `setups` and start the engine of the first, for :func:`run`.

    Raises
    ------
    OutputError
        Another process is writing into one of the folders.
    EngineError
        The engine cannot be started.
    """
    with ExitStack() as held:
        for setup in setups:
            held.enter_context(alone(output_folder(setup.experiment)))
        first = next(iter(setups))
        name = () if first.device.type == "cpu" else (first.experiment.device,)
        engine = first.experiment.parts.engine
        session = held.enter_context(engine.session(client_app.app, *name))
        held.enter_context(terminable())  # last, since Ray has a handler of its own
        yield session


def run(
    setup: Setup,
    session: Session,
    *,
    watch: Watch = lambda row, result: None,
    resumed: Checkpoint | None = None,
    budget: Budget | None = None,
    observers: Sequence[Observer] = (),
) -> dict[str, Any]:
    """Train what `setup` describes and write its results; return the summary.

    Parameters
    ----------
    setup : Setup
        Its experiment must name an output folder.
    session : Session
        Makes the grid; from :func:`workers`.
    watch : callable
        Called after each round with its row of results and its result.
    resumed : Checkpoint, optional
        Where the run goes on.
    budget : Budget, optional
        Ends the run, beside the budget of the experiment.
    observers : sequence of Observer
        Measure each round, or act on it, beside ours; a run that goes on needs them again.

    Raises
    ------
    NoClientsLeft
        All clients of a round were dropped.
    TrainingFailed
        The server's own training led to numbers that are not finite.
    WorkersLost
        Workers die again and again.
    OutputError
        The folder already holds a run, or cannot be written to.
    """
    experiment = setup.experiment
    if not experiment.out:
        raise OutputError("out: a run needs a folder; give one")
    if resumed:
        try:
            about_data.check(setup, output_folder(experiment))
        except ValueError as error:
            raise OutputError(str(error)) from None
    worker = setup.worker(setup.stack(resumed.stack if resumed else 0))
    grid = session(worker, experiment.clients, experiment.timeout)
    server_app.app(grid, LocalContext(setup, watch, resumed, budget, observers))
    return read_summary(output_folder(experiment) / SUMMARY)


def run_each(
    setups: Mapping[str, Setup],
    watching: Callable[[str, Setup], AbstractContextManager[Watch]],
    resumed: Checkpoint | None = None,
    observers: Sequence[Observer] = (),
) -> dict[str, dict[str, Any]]:
    """Run one after the other on the same workers; return the summaries by name.

    `watching` opens, for each run, what is called after its rounds. The rest is as for
    :func:`run`.
    """
    summaries = {}
    with workers([*setups.values()]) as session:
        for name, setup in setups.items():
            with watching(name, setup) as watch:
                summaries[name] = run(
                    setup, session, watch=watch, resumed=resumed, observers=observers
                )
    return summaries


@dataclass(frozen=True)
class Stop:
    """Why a run stopped early, in one line, and the exit code of its process."""

    text: str
    code: int
    is_error: bool = True

    @classmethod
    def because(cls, error: BaseException, folder: Path, runs: Collection[Path]) -> Stop:
        """Explain one of :data:`STOPS`; `folder` holds the results of all `runs`."""
        stopped = [run for run in runs if (run / FILE).exists()]
        advice = f"; to go on: fl-split resume {stopped[0]}" if stopped else ""
        where = f"finished rounds are in {folder}{advice}"
        if isinstance(error, KeyboardInterrupt):
            return cls(f"stopped; {where}", exit_code(error), is_error=False)
        if isinstance(error, NoClientsLeft | TrainingFailed | WorkersLost | WriteError):
            return cls(f"{error}; {where}", 2 if isinstance(error, AllLate) else 1)
        return cls(str(error), 2)
