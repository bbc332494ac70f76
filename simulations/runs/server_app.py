"""Flower ServerApp: the same for every engine, from the run config to the results folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fl_split.accelerators import computing
from fl_split.exchange.graphs import GraphMemory
from fl_split.exits import exits_of
from fl_split.flat import Flat
from fl_split.models import processor
from simulations.data import statistics
from simulations.data.images import DataError
from simulations.engines.local_grid import LocalGrid, WorkersLost, stack_of
from simulations.runs import about_data, nodes, private_exits, routing
from simulations.runs.budget import Budget, NoBudget, by_name
from simulations.runs.centralised import CentralisedTrainer
from simulations.runs.checkpoint import FILE, Checkpoint, Checkpointer
from simulations.runs.columns import VIRTUAL_SECONDS
from simulations.runs.evaluator import Evaluator, exit_metrics
from simulations.runs.experiment import Experiment
from simulations.runs.facts import facts_of
from simulations.runs.fairness import Fairness
from simulations.runs.files import WriteError, write_whole, writing
from simulations.runs.lateness import TimedAttendance
from simulations.runs.moving_average import MovingAverage
from simulations.runs.observers import (
    Budgets,
    Channels,
    Costs,
    Learning,
    Observer,
    Seconds,
    Tracker,
    Watcher,
    measured,
    new_metrics,
    of_clients,
)
from simulations.runs.paths import expanded, new_folder
from simulations.runs.results import UNWRITTEN, Recorder
from simulations.runs.saved_model import plain
from simulations.runs.setup import Setup
from simulations.runs.signals import undisturbed
from simulations.runs.virtual_time import VirtualTime
from simulations.system.system import Timed
from strategies import NoClientsLeft, Progress, RoundResult, Training, TrainingFailed, train
from strategies.server.attendance import Everyone
from strategies.server.threads import ServerThreads
from strategies.server.training import OutOfMemory

app = ServerApp()

ENDED_BY: dict[type[BaseException], str] = {
    KeyboardInterrupt: "interrupted",
    OutOfMemory: "out of memory",
    TrainingFailed: "training failed",
    NoClientsLeft: "no clients left",
    WorkersLost: "workers lost",
    WriteError: UNWRITTEN,
}
"""What summaries call the exceptions that end a run early."""

PATIENCE = 2
"""Times the timeout: our engines stop a handler at one, and a message behind it is late at two."""

Watch = Callable[[dict[str, Any], RoundResult], None]
"""Called after each round with its row of results and all there is to know about it."""


class LocalContext(Context):
    """The server context of our own engines: a prepared experiment, and observers of its run.

    `budget` ends the run beside the experiment's own; `observers` look at it beside ours.
    `threads` (0: one per core) and `graphs` are the server's.
    """

    def __init__(
        self,
        setup: Setup,
        watch: Watch,
        resumed: Checkpoint | None = None,
        budget: Budget | None = None,
        observers: Sequence[Observer] = (),
        threads: int = 0,
        graphs: GraphMemory | None = None,
    ) -> None:
        run_config = setup.experiment.model_dump()
        super().__init__(1, 1, {}, RecordDict(), run_config)
        self.setup, self.watch, self.resumed = setup, watch, resumed
        self.budget, self.observers = budget or NoBudget(), observers
        self.threads, self.graphs = threads, graphs or GraphMemory()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run config describes and write its results."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # results must not depend on how many cores are idle
    try:
        if not isinstance(context, LocalContext):
            setup, grid = nodes.prepared(grid, Experiment.from_dict(context.run_config))
            context = LocalContext(setup, lambda row, result: None)
        setup = context.setup
        with computing(setup.device, setup.experiment.deterministic):
            RunController(grid, context).run()
    finally:
        if isinstance(context, LocalContext):
            for half in (context.setup.head, context.setup.tail):
                half.cpu()  # and free a GPU of them
        torch.set_num_threads(threads)  # who called, as a notebook, goes on with its own


class RunController:
    """A run in progress; `finished` are the weights after its last whole round.

    `exits` are those that clients keep for themselves, as of the last round that showed them.
    """

    def __init__(self, grid: Grid, context: LocalContext) -> None:
        self.grid, self.setup = grid, context.setup
        self.experiment = experiment = context.setup.experiment
        self.before = context.resumed or Checkpoint(0, self.setup.initial_weights(), {}, {})
        self.threads, self.graphs = ServerThreads(context.threads), context.graphs
        for half in (self.setup.head, self.setup.tail):
            half.to(self.setup.device)
        self.head, self.tail = Flat(self.setup.head), Flat(self.setup.tail)
        self.pooled = CentralisedTrainer(self.head, self.tail, self.setup)
        self.pooled.set_moments(self.before.moments)
        self.folder = output_folder(experiment)
        system = experiment.parts.system
        self.timers = [VirtualTime(system, Timed.of(experiment.model_dump()))] if system else []
        link = experiment.parts.link()
        is_perfect = link.channel.is_perfect and link.down_channel.is_perfect
        self.channels = [] if is_perfect else [Channels()]
        declared = new_metrics([*self.channels, *self.timers, *context.observers])
        new = [*exit_metrics(self.setup.head, self.setup.tail), *declared]
        self.recorder = Recorder(self.folder, experiment, self.before.rounds, new)
        for timer in self.timers:
            timer.elapsed = sum(row[VIRTUAL_SECONDS] for row in self.recorder.rows)
        self.about_data = about_data.record(self.setup)
        write_whole(
            self.folder / about_data.FILE, json.dumps(self.about_data, indent=2).encode() + b"\n"
        )
        if experiment.parts.model.is_transformers:
            side = self.setup.model_input["image_size"]
            asked = json.dumps(processor.to_file(self.setup.preprocessing, side), indent=2)
            write_whole(self.folder / processor.FILE, asked.encode() + b"\n")
        if self.setup.knows_labels:
            with writing(self.folder / statistics.FILE):
                statistics.write(self.setup.train, self.folder)
        self.tracker = Tracker(
            experiment.parts.tracking.open(experiment.model_dump(exclude={"out"}), self.folder)
        )
        fairness = Fairness(self.folder, self.setup.class_names, self.before.rounds)
        self.average = MovingAverage(experiment.ema, self.before.moments.get("ema", {}))
        halves = self.head, self.tail
        self.evaluator = Evaluator(*halves, self.setup, self.threads, fairness, self.average)
        self.evaluator.load(self.before.weights)
        self.finished = self.average.of(self.before.weights)
        self.exits = private_exits.of_states(self.before.clients)
        budgets = by_name(experiment.budget, experiment.parts.budget)
        budgets["budget of the study"] = context.budget
        self.budgets = Budgets(budgets, self.recorder.so_far)
        self.checkpoints = Checkpointer(
            grid, self.folder, experiment, self._moments, self.before, self.setup.device
        )
        self.observers = self._observers(context)
        if isinstance(grid, LocalGrid) and self.before.clients:
            grid.restore(self.before.clients)

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        """What is remembered from round to round beside what training knows of, by name."""
        return {**self.pooled.moments(), "ema": self.average.state()}

    def _observers(self, context: LocalContext) -> list[Observer]:
        """Return what looks at the run after each round, in this order."""
        return [
            self.evaluator,
            Learning(),
            Costs(self.experiment.parts.codec),
            Seconds(getattr(self.grid, "cpu_seconds", None)),
            *self.channels,
            *self.timers,
            *context.observers,
            self.tracker,
            self.checkpoints,
            Watcher(context.watch),
            self.budgets,
        ]

    def run(self) -> None:
        """Train, write results, and whatever happens leave the last round's model."""
        facts = facts_of(self.setup, self.before.cpu, self.about_data)
        try:
            self._train()
        except BaseException as error:
            with undisturbed(forgets=True):
                self._leave_early(error, facts)
            raise
        is_whole = len(self.recorder.rows) == self.experiment.rounds
        with undisturbed():
            self._leave("complete", "rounds" if is_whole else self.budgets.spent(), facts)
            routing.write(self.setup, self.folder)
            (self.folder / FILE).unlink(missing_ok=True)

    def _leave_early(self, error: BaseException, facts: Mapping[str, Any]) -> None:
        """Write what there is, so that the run can go on; a second failure says nothing new."""
        names = (name for kind, name in ENDED_BY.items() if isinstance(error, kind))
        ended_by = next(names, "error")
        is_stopped = isinstance(error, KeyboardInterrupt)
        with suppress(WriteError) if isinstance(error, WriteError) else nullcontext():
            try:
                if isinstance(error, KeyboardInterrupt | WorkersLost | OutOfMemory):
                    self.checkpoints.write_latest()
            finally:
                self._leave("interrupted" if is_stopped else "failed", ended_by, facts)

    def _leave(self, status: str, ended_by: str, facts: Mapping[str, Any]) -> None:
        """Write the model after the last whole round, and the summary."""
        self.threads.close()
        facts = {**facts, "stack": stack_of(self.grid)}
        self.evaluator.load(self.finished)  # training may have gone on from there
        model, codec = plain(self.setup.model), self.setup.codec_weights()
        try:
            private_exits.write(self.folder, exits_of(self.setup.head), self.exits)
            self.recorder.finish(model, status, ended_by, codec, facts)
        finally:
            self.tracker.log.close(status)

    def _train(self) -> None:
        experiment, before = self.experiment, self.before
        patience = PATIENCE if isinstance(self.grid, LocalGrid) else 1
        try:
            train(
                experiment.parts.strategy,
                self.grid,
                before.weights,
                before.rounds if self.budgets.spent() else experiment.rounds,
                experiment.timeout * patience,
                self._training(),
            )
        except DataError as error:
            raise TrainingFailed(str(error)) from None
        except torch.OutOfMemoryError:
            raise OutOfMemory("the server") from None

    def _training(self) -> Training:
        experiment, moments = self.experiment, self.before.moments
        return Training(
            clients=experiment.clients,
            fraction=experiment.fraction,
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            exchange=self.setup.exchange,
            link=experiment.parts.link(self.setup.device),
            tail_optimizer=experiment.parts.tail_optimizer,
            head=self.head,
            tail=self.tail,
            pooled_round=self.pooled,
            aggregator=experiment.parts.aggregation(),
            threads=self.threads,
            graphs=self.graphs,
            stand_ins=self.setup.stand_ins(self.graphs),
            recipe=self.setup.recipe(),
            stack=0 if self.setup.device.type == "cpu" else stack_of(self.grid),
            num_steps=self.setup.num_steps,
            attendance=TimedAttendance(self.timers[0]) if self.timers else Everyone(),
            speeds=self.timers[0].speeds if self.timers else (),
            progress=Progress(
                self.before.rounds,
                *(moments.get(name, {}) for name in ("tail", "aggregator", "link")),
            ),
            on_round=self._on_round,
        )

    def _on_round(self, result: RoundResult) -> bool:
        """Write what the round gave; tell whether it was the last."""
        numbers = measured(self.observers, result)
        with undisturbed():  # what ends a run here finds the round whole, or not begun
            row = self.recorder.add(result, numbers, of_clients(self.observers, result))
            self.finished = self.average.of(result.weights)
            self.exits |= result.exits
            self.checkpoints.keep(result)
        return any([observer.after_round(result, row) for observer in self.observers])


def output_folder(experiment: Experiment) -> Path:
    """Where results go: `out`, or a folder named after the time."""
    return expanded(experiment.out) if experiment.out else new_folder()
