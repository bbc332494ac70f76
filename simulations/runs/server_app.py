"""Flower ServerApp: the same for every engine, from the run config to the results folder."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fl_split.flat import Flat
from fl_split.models.lora import merged
from fl_split.specs import stages
from simulations.data import statistics as partition_statistics
from simulations.engines.local_grid import LocalGrid
from simulations.report.labels import short
from simulations.runs.budget import Budget, NoBudget, parse_budget
from simulations.runs.centralised import Pool
from simulations.runs.checkpoint import FILE, Checkpoint
from simulations.runs.evaluator import Evaluator
from simulations.runs.experiment import Experiment
from simulations.runs.provenance import machine
from simulations.runs.results import Recorder
from simulations.runs.setup import Setup, prepare
from simulations.runs.tracking import Log, NoLog
from strategies import NoClientsLeft, Progress, RoundReport, Training
from strategies.server.threads import Crew

app = ServerApp()

PATIENCE = 2
"""Times the timeout: our engines stop a handler at one, so who waits behind it is late at two."""

Watch = Callable[[dict[str, Any], RoundReport], None]
"""Called after each round with its row of results and all there is to know about it."""


class LocalContext(Context):
    """A server context of our own engines: what is prepared already, and who is watching.

    `budget` ends the run beside the experiment's own.
    """

    def __init__(
        self,
        setup: Setup,
        watch: Watch,
        resumed: Checkpoint | None = None,
        budget: Budget | None = None,
    ) -> None:
        run_config = setup.experiment.model_dump()
        super().__init__(1, 1, {}, RecordDict(), run_config)
        self.setup = setup
        self.watch = watch
        self.resumed = resumed
        self.budget = budget or NoBudget()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run config describes and write its results."""
    torch.set_num_threads(1)  # results must not depend on how many cores are idle
    if isinstance(context, LocalContext):
        Run(grid, context)()
    else:
        setup = prepare(Experiment.from_dict(context.run_config))
        Run(grid, LocalContext(setup, lambda row, report: None))()


class Run:
    """A run in progress: the model in training, its results, and what ends it.

    `finished` are the weights after the last whole round.
    """

    def __init__(self, grid: Grid, context: LocalContext) -> None:
        self.grid, self.context, self.setup = grid, context, context.setup
        self.experiment = experiment = context.setup.experiment
        self.before = context.resumed or Checkpoint(0, self.setup.initial_arrays(), {}, {})
        self.finished = self.before.arrays
        self.crew = Crew()
        self.head, self.tail = Flat(self.setup.head), Flat(self.setup.tail)
        self.evaluator = Evaluator(self.head, self.tail, self.setup, self.crew)
        self.evaluator.load(self.before.arrays)
        self.pool = Pool(self.head, self.tail, self.setup)
        self.pool.set_moments(self.before.moments)
        self.folder = output_folder(experiment)
        clock = getattr(grid, "cpu_seconds", None)
        names, rounds = self.setup.class_names, self.before.rounds
        self.recorder = Recorder(self.folder, experiment, names, clock, rounds)
        partition_statistics.write(self.setup.train, self.folder)
        settings = experiment.model_dump(exclude={"out"})
        self.log: Log = experiment.build("tracking").open(settings, self.folder)
        self.budgets = _budgets(context)
        if isinstance(grid, LocalGrid) and self.before.clients:
            grid.restore(self.before.clients)

    def __call__(self) -> None:
        """Train, write results, and whatever happens leave the last round's model."""
        facts = {
            "machine": machine(self.before.cpu),
            "activation_bytes": self.setup.activation_bytes(),
            "majority_accuracy": self.setup.majority_accuracy,
            "unheld": asdict(self.setup.unheld),
        }
        status, ended_by = "failed", "error"
        try:
            self._train()
            is_whole = len(self.recorder.rows) == self.experiment.rounds
            status, ended_by = "complete", "rounds" if is_whole else self._spent()
        except KeyboardInterrupt:
            status = ended_by = "interrupted"
            raise
        except NoClientsLeft:
            ended_by = "no clients left"
            raise
        finally:
            self.crew.close()
            self.evaluator.load(self.finished)  # training may have gone on from there
            model, codec = merged(self.setup.model), self.setup.codec_weights()
            self.recorder.finish(model, status, ended_by, codec, facts)
            self.log.close(status)
        (self.folder / FILE).unlink(missing_ok=True)

    def _train(self) -> None:
        experiment, before = self.experiment, self.before
        patience = PATIENCE if isinstance(self.grid, LocalGrid) else 1
        experiment.build("strategy").start(
            self.grid,
            before.arrays,
            before.rounds if self._spent() else experiment.rounds,
            experiment.timeout * patience,
            evaluate_fn=self.evaluator,
            training=self._training(),
        )

    def _training(self) -> Training:
        experiment, moments = self.experiment, self.before.moments
        return Training(
            clients=experiment.clients,
            fraction=experiment.fraction,
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            codec=experiment.build("codec"),
            downlink=experiment.build("downlink"),
            tail_optimizer=experiment.build("tail_optimizer"),
            head=self.head,
            tail=self.tail,
            pooled_round=self.pool,
            crew=self.crew,
            aggregator=experiment.build("aggregation"),
            progress=Progress(
                self.before.rounds, moments.get("tail", {}), moments.get("aggregator", {})
            ),
            on_round=self._on_round,
        )

    def _on_round(self, report: RoundReport) -> bool:
        """Write what the round gave; tell whether it was the last."""
        self.finished = report.arrays
        row = self.recorder.add(report)
        self._track(row)
        every = self.experiment.checkpoint_every
        if every and report.round % every == 0:
            self._save(report)
        self.context.watch(row, report)
        return bool(self._spent())

    def _track(self, row: dict[str, Any]) -> None:
        try:
            self.log.add(row)
        except Exception as error:  # of a library or a network; results are in the folder
            warnings.warn(f"tracking ended in round {row['round']}: {error}", stacklevel=2)
            self.log = NoLog()

    def _save(self, report: RoundReport) -> None:
        """Write a checkpoint, if the engine can tell what clients are."""
        states = self.grid.states() if isinstance(self.grid, LocalGrid) else None
        if states is None:  # or a worker is just being restarted: not this time
            return
        memory = {"tail": report.progress.moments, "aggregator": report.progress.aggregator}
        moments = {**self.pool.moments(), **memory}
        cpu = machine(self.before.cpu)["cpu"]
        found = Checkpoint(report.round, report.arrays, moments, states, cpu)
        found.write(self.folder, self.experiment)

    def _spent(self) -> str:
        """Name the first budget that is used up; nothing if none is."""
        totals = self.recorder.totals()
        return next((name for name, one in self.budgets.items() if one.is_spent(totals)), "")


def _budgets(context: LocalContext) -> dict[str, Budget]:
    """All budgets of a run, by what they are called."""
    named = {
        short("budget", spec): parse_budget(spec)
        for spec in stages(context.setup.experiment.budget)
    }
    return {**named, "budget of the study": context.budget}


def output_folder(experiment: Experiment) -> Path:
    """Where results go: `out`, or a folder named after the time."""
    return Path(experiment.out or time.strftime("runs/%Y%m%d-%H%M%S")).expanduser()
