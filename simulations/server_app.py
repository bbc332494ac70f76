"""Flower ServerApp: the same for every engine, from the run config to the results folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fl_split.flat import Flat
from simulations.experiment import Experiment
from simulations.grid import LocalGrid
from simulations.results import Recorder
from simulations.setup import Evaluator, Pool, Setup, prepare
from strategies import RoundReport, Training
from strategies.crew import Crew

app = ServerApp()

PATIENCE = 2
"""Times the timeout: our engines stop a handler at one, so who waits behind it is late at two."""

Watch = Callable[[dict[str, Any], RoundReport], None]
"""Called after each round with its row of results and all there is to know about it."""


class LocalContext(Context):
    """A server context of our own engines: what is prepared already, and who is watching."""

    def __init__(self, setup: Setup, watch: Watch) -> None:
        run_config = setup.experiment.model_dump()
        super().__init__(1, 1, {}, RecordDict(), run_config)
        self.setup = setup
        self.watch = watch


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run config describes and write its results."""
    torch.set_num_threads(1)  # results must not depend on how many cores are idle
    if isinstance(context, LocalContext):
        run(grid, context.setup, context.watch)
    else:
        run(grid, prepare(Experiment.from_dict(context.run_config)), lambda row, report: None)


def run(grid: Grid, setup: Setup, watch: Watch) -> None:
    """Train on `grid`, write results, and whatever happens leave the last round's model."""
    experiment = setup.experiment
    head, tail = Flat(setup.head), Flat(setup.tail)
    crew = Crew()
    evaluator = Evaluator(head, tail, setup.test, crew)
    recorder = Recorder(output_folder(experiment), experiment, getattr(grid, "cpu_seconds", None))
    finished = setup.initial_arrays()

    def on_round(report: RoundReport) -> None:
        nonlocal finished
        finished = report.arrays
        watch(recorder.add(report), report)

    training = Training(
        clients=experiment.clients,
        fraction=experiment.fraction,
        seed=experiment.seed,
        codec=experiment.build("codec"),
        tail_optimizer=experiment.build("tail_optimizer"),
        head=head,
        tail=tail,
        pooled_round=Pool(head, tail, setup),
        crew=crew,
        on_round=on_round,
    )
    status = "failed"
    try:
        experiment.build("strategy").start(
            grid,
            setup.initial_arrays(),
            experiment.rounds,
            experiment.timeout * (PATIENCE if isinstance(grid, LocalGrid) else 1),
            evaluate_fn=evaluator,
            training=training,
        )
        status = "complete"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        crew.close()
        evaluator.load(finished)  # training stopped half-way may have gone on from there
        recorder.finish(setup.model, status)


def output_folder(experiment: Experiment) -> Path:
    """Where results go: `out`, or a folder named after the time."""
    return Path(experiment.out or time.strftime("runs/%Y%m%d-%H%M%S")).expanduser()
