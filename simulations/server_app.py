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
from simulations.results import Recorder
from simulations.setup import Evaluator, Pool, Setup, prepare
from strategies import Training

app = ServerApp()


class LocalContext(Context):
    """A server context of our own engines: what is prepared already, and who is watching."""

    def __init__(self, setup: Setup, watch: Callable[[dict[str, Any]], None]) -> None:
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
        run(grid, prepare(Experiment.from_dict(context.run_config)), lambda row: None)


def run(grid: Grid, setup: Setup, watch: Callable[[dict[str, Any]], None]) -> None:
    """Train on `grid`; call `watch` with each row of results."""
    experiment = setup.experiment
    head, tail = Flat(setup.head), Flat(setup.tail)
    recorder = Recorder(output_folder(experiment), experiment, _clock(grid))
    training = Training(
        clients=experiment.clients,
        fraction=experiment.fraction,
        seed=experiment.seed,
        codec=experiment.build("codec"),
        tail_optimizer=experiment.build("tail_optimizer"),
        head=head,
        tail=tail,
        pooled_round=Pool(head, tail, setup),
        on_round=lambda report: watch(recorder.add(report)),
    )
    status = "failed"
    try:
        experiment.build("strategy").start(
            grid,
            setup.initial_arrays(),
            experiment.rounds,
            experiment.timeout,
            evaluate_fn=Evaluator(head, tail, setup.test),
            training=training,
        )
        status = "complete"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        recorder.finish(setup.model, status)


def output_folder(experiment: Experiment) -> Path:
    """Where results go: `out`, or a folder named after the time."""
    return Path(experiment.out or time.strftime("runs/%Y%m%d-%H%M%S")).expanduser()


def _clock(grid: Grid) -> Callable[[], float]:
    """CPU seconds of everything our engines run; of this process under Flower's runtime."""
    return getattr(grid, "cpu_seconds", time.process_time)
