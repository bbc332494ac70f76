"""Flower ServerApp: the same for every engine, from the run config to the results folder."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fl_split.flat import Flat
from fl_split.lora import merged
from fl_split.specs import stages
from simulations import partition_statistics
from simulations.checkpoint import FILE, Checkpoint
from simulations.experiment import Experiment
from simulations.grid import LocalGrid
from simulations.report.labels import short
from simulations.results import Recorder
from simulations.setup import Evaluator, Pool, Setup, prepare
from simulations.tracking import Log, NoLog
from strategies import NoClientsLeft, Progress, RoundReport, Training
from strategies.budget import Budget, NoBudget, parse_budget
from strategies.crew import Crew

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
        run(grid, context)
    else:
        setup = prepare(Experiment.from_dict(context.run_config))
        run(grid, LocalContext(setup, lambda row, report: None))


def run(grid: Grid, context: LocalContext) -> None:
    """Train on `grid`, write results, and whatever happens leave the last round's model."""
    setup, experiment = context.setup, context.setup.experiment
    folder = output_folder(experiment)
    before = context.resumed or Checkpoint(0, setup.initial_arrays(), {}, {})
    head, tail, crew = Flat(setup.head), Flat(setup.tail), Crew()
    evaluator = Evaluator(head, tail, setup, crew)
    evaluator.load(before.arrays)
    pool = Pool(head, tail, setup)
    pool.set_moments(before.moments)
    clock = getattr(grid, "cpu_seconds", None)
    recorder = Recorder(folder, experiment, setup.class_names, clock, before.rounds)
    partition_statistics.write(setup.train, folder)
    settings = experiment.model_dump(exclude={"out"})
    log: Log = experiment.build("tracking").open(settings, folder)
    if isinstance(grid, LocalGrid) and before.clients:
        grid.restore(before.clients)
    finished = before.arrays
    facts = {
        "activation_bytes": setup.activation_bytes(),
        "majority_accuracy": setup.majority_accuracy,
    }

    def track(row: dict[str, Any]) -> None:
        nonlocal log
        try:
            log.add(row)
        except Exception as error:  # of a library or a network; results are in the folder
            warnings.warn(f"tracking ended in round {row['round']}: {error}", stacklevel=2)
            log = NoLog()

    budgets = _budgets(context)

    def on_round(report: RoundReport) -> bool:
        nonlocal finished
        finished = report.arrays
        row = recorder.add(report)
        track(row)
        every = experiment.checkpoint_every
        if every and report.round % every == 0 and isinstance(grid, LocalGrid):
            states = grid.states()
            memory = {"tail": report.progress.moments, "aggregator": report.progress.aggregator}
            moments = {**pool.moments(), **memory}
            if states is not None:  # else a worker is just being restarted: not this time
                Checkpoint(report.round, report.arrays, moments, states).write(folder, experiment)
        context.watch(row, report)
        return bool(_spent(budgets, recorder))

    training = Training(
        clients=experiment.clients,
        fraction=experiment.fraction,
        seed=experiment.seed,
        codec=experiment.build("codec"),
        downlink=experiment.build("downlink"),
        tail_optimizer=experiment.build("tail_optimizer"),
        head=head,
        tail=tail,
        pooled_round=pool,
        crew=crew,
        aggregator=experiment.build("aggregation"),
        progress=Progress(
            before.rounds, before.moments.get("tail", {}), before.moments.get("aggregator", {})
        ),
        on_round=on_round,
    )
    status, ended_by = "failed", "error"
    try:
        experiment.build("strategy").start(
            grid,
            before.arrays,
            before.rounds if _spent(budgets, recorder) else experiment.rounds,
            experiment.timeout * (PATIENCE if isinstance(grid, LocalGrid) else 1),
            evaluate_fn=evaluator,
            training=training,
        )
        is_whole = len(recorder.rows) == experiment.rounds
        status, ended_by = "complete", "rounds" if is_whole else _spent(budgets, recorder)
    except KeyboardInterrupt:
        status = ended_by = "interrupted"
        raise
    except NoClientsLeft:
        ended_by = "no clients left"
        raise
    finally:
        crew.close()
        evaluator.load(finished)  # training stopped half-way may have gone on from there
        recorder.finish(merged(setup.model), status, ended_by, setup.codec_weights(), facts)
        log.close(status)
    (folder / FILE).unlink(missing_ok=True)


def _budgets(context: LocalContext) -> dict[str, Budget]:
    """All budgets of a run, by what they are called."""
    named = {
        short("budget", spec): parse_budget(spec)
        for spec in stages(context.setup.experiment.budget)
    }
    return {**named, "budget of the study": context.budget}


def _spent(budgets: Mapping[str, Budget], recorder: Recorder) -> str:
    """Name the first budget that is used up; nothing if none is."""
    totals = recorder.totals()
    return next((name for name, budget in budgets.items() if budget.is_spent(totals)), "")


def output_folder(experiment: Experiment) -> Path:
    """Where results go: `out`, or a folder named after the time."""
    return Path(experiment.out or time.strftime("runs/%Y%m%d-%H%M%S")).expanduser()
