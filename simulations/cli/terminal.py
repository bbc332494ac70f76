"""What all commands share: errors at the door, progress, and what is said when a run stops."""

from __future__ import annotations

import csv
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:  # importing costs seconds, which --help can do without
    from simulations.runs.budget import Budget
    from simulations.runs.experiment import Experiment
    from simulations.runs.setup import Setup
    from strategies import RoundReport

out, err = Console(), Console(stderr=True)

CONFIG = typer.Argument(help="TOML file; see configs/ for documented examples.", show_default=False)
OVERRIDES = typer.Argument(
    help="Settings that replace those of the file: [b]clients=20 codec='adc(ratio=0.1)'[/b].",
    metavar="[KEY=VALUE]...",
    show_default=False,
)

INTERVAL = 1.0
"""Seconds between two looks at what runs."""

AROUND = 9
"""Lines of a terminal that a table of runs leaves for the rest."""


def run_all(plans: dict[str, dict[str, Any]], folder: Path, budget: Budget | None = None) -> None:
    """Check all plans, then run one after the other on the same workers."""
    with quiet():
        from simulations.runs.results import check_empty, check_folder
    with door():
        check_folder(folder)
        check_empty(folder)
    setups, folders = prepare_all(plans, folder)
    run_setups(setups, folders, folder, budget=budget)


def prepare_all(
    plans: dict[str, dict[str, Any]], folder: Path
) -> tuple[dict[str, Setup], dict[str, Path]]:
    """Check all plans, load their data and build their models; make `folder`."""
    with quiet():
        from simulations.runs.experiment import Experiment
        from simulations.runs.results import check_folder, make_folder
        from simulations.runs.setup import prepare

    with door():
        folders = {name: folder / name if name else folder for name in plans}
        setups = {}
        for name, values in plans.items():
            with of(name):
                check_folder(folders[name])
                setups[name] = prepare(Experiment.from_dict({**values, "out": str(folders[name])}))
        engines = {setup.experiment.engine for setup in setups.values()}
        if len(engines) > 1:
            raise ValueError(f"all runs must have one engine, got {', '.join(sorted(engines))}")
        make_folder(folder)
    return setups, folders


def run_setups(
    setups: dict[str, Setup],
    folders: dict[str, Path],
    folder: Path,
    resumed: Any = None,
    budget: Budget | None = None,
) -> None:
    """Run what has been checked, on the same workers; show a table in the end.

    `budget` ends each run, beside its own.
    """
    from simulations import report
    from simulations.clients import client_app
    from simulations.runs.lock import alone
    from simulations.runs.results import COMPARISON, SUMMARY

    engine = next(iter(setups.values())).experiment.build("engine")
    explain([setup.experiment for setup in setups.values()])
    summaries = {}
    with ExitStack() as held:
        with door():
            for path in folders.values():
                held.enter_context(alone(path))
        held.enter_context(ends(folder, folders.values()))
        session = held.enter_context(engine.session(client_app.app))
        for name, setup in setups.items():
            _train(_grid(session, setup), setup, name, resumed, budget)
            summaries[name] = json.loads((folders[name] / SUMMARY).read_text())
    frame = report.comparison({name or folder.name: s for name, s in summaries.items()})
    out.print(report.comparison_table(frame, out.width))
    for name, summary in summaries.items():
        _tell_end(name, summary)
    if len(setups) > 1:
        frame.to_csv(folder / COMPARISON, index=False)
        report.plot(folders, folder / "comparison.svg")
    out.print("Results:", str(folder), markup=False, highlight=False, soft_wrap=True)


def explain(experiments: Sequence[Experiment]) -> None:
    """Say what must be known before a run: what nobody holds, and what accuracy means."""
    from simulations.runs.setup import unheld

    for text in dict.fromkeys(
        f"{e.partition}, {e.clients} clients, seed {e.seed}: {unheld(e)}"
        for e in experiments
        if str(unheld(e))
    ):
        err.print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True, highlight=False)
    for experiment in experiments:
        if experiment.build("strategy").keeps_models:
            name = experiment.strategy.partition("(")[0]
            own = "client %" if experiment.holdout else "holdout=0.2 shows accuracy"
            text = (
                f"{name}: accuracy is the mean over the clients' own models on the whole test "
                f"split; {own} on their own samples"
            )
            out.print(text, markup=False, highlight=False, soft_wrap=True)
            return


def _tell_end(name: str, summary: dict[str, Any]) -> None:
    """Say what ended a run before its last round."""
    if (reason := summary["ended_by"]) != "rounds":
        rounds = summary["experiment"]["rounds"]
        text = f"ended after round {summary['rounds']} of {rounds}: {reason} is used up"
        label = f"{name}: " if name else ""
        out.print(f"{label}{text}", markup=False, highlight=False, soft_wrap=True)


def _grid(session: Any, setup: Setup) -> Any:
    return session(setup.worker(), setup.experiment.clients, setup.experiment.timeout)


def _train(grid: Any, setup: Setup, name: str, resumed: Any, budget: Budget | None) -> None:
    from simulations.runs import server_app

    experiment = setup.experiment
    is_split = experiment.build("strategy").trains == "split"
    specs = (experiment.strategy, *([experiment.codec] if is_split else []))
    label = name or " ".join(spec.partition("(")[0] for spec in specs)
    columns = (
        TextColumn("[b]{task.description}[/b]"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        TextColumn("{task.fields[news]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=out, disable=not out.is_terminal) as progress:
        done = resumed.rounds if resumed else 0
        task = progress.add_task(
            escape(label), total=experiment.rounds, completed=done, news="starting"
        )
        sent = _sent_before(Path(experiment.out), done)
        watch = partial(_show, progress, task, label, experiment.rounds, sent)
        server_app.app(grid, server_app.LocalContext(setup, watch, resumed, budget))


def _sent_before(folder: Path, rounds: int) -> dict[str, int]:
    """Bytes up and down of so many rounds, of a run that goes on."""
    if not rounds:
        return {"up": 0, "down": 0}
    from simulations.runs.results import ROUNDS

    with (folder / ROUNDS).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:rounds]
    return {
        way: sum(int(row[f"{kind}_bytes_{way}"]) for row in rows for kind in ("payload", "head"))
        for way in ("up", "down")
    }


def _show(
    progress: Progress,
    task: TaskID,
    label: str,
    rounds: int,
    sent: dict[str, int],
    row: dict[str, Any],
    report: RoundReport,
) -> None:
    """Show a finished round: on the bar, or without a terminal as a line now and then."""
    for way in sent:
        sent[way] += row[f"payload_bytes_{way}"] + row[f"head_bytes_{way}"]
    accuracy = f"{100 * row['accuracy']:.1f} %"
    if row["client_accuracy"] is not None:
        accuracy += f" client {100 * row['client_accuracy']:.1f} %"
    news = f"{accuracy} up {decimal(sent['up'])} down {decimal(sent['down'])}"
    progress.update(task, advance=1, news=news)
    for client, traffic in sorted(report.traffic.items()):
        if traffic.dropped:
            text = f"round {row['round']}: client {client} dropped: {traffic.dropped}"
            out.print(text, markup=False, highlight=False)
    if not out.is_terminal and row["round"] % max(1, rounds // 10) == 0:
        text = f"{label}: round {row['round']}/{rounds} accuracy {news}"
        out.print(text, markup=False, highlight=False)


def chosen_folder(values: dict[str, Any], option: Path | None) -> Path:
    """Where results go: what is asked for, or a folder named after the time."""
    return option or Path(str(values.get("out") or time.strftime("runs/%Y%m%d-%H%M%S")))


@contextmanager
def door() -> Iterator[None]:
    """Turn bad input into one line and exit code 2."""
    try:
        with quiet():
            yield
    except ValueError as error:
        complain(error)
        raise typer.Exit(2) from None


def complain(error: object) -> None:
    """Print one line of error."""
    text = " ".join(str(error).split())
    err.print(f"[red]error:[/red] {escape(text)}", soft_wrap=True, highlight=False)


@contextmanager
def of(name: str) -> Iterator[None]:
    """Say which of several runs a message is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name else str(error)) from None


@contextmanager
def ends(folder: Path, runs: Iterable[Path]) -> Iterator[None]:
    """Say what became of a run that did not reach its end, and how to go on."""
    from simulations.engines.local_grid import EngineError
    from simulations.runs.checkpoint import FILE
    from simulations.runs.results import OutputError
    from strategies import NoClientsLeft

    def where() -> str:
        stopped = [run for run in runs if (run / FILE).exists()]
        advice = f"; to go on: fl-split resume {stopped[0]}" if stopped else ""
        return f"finished rounds are in {folder}{advice}"

    try:
        yield
    except KeyboardInterrupt:
        err.print(f"stopped; {where()}", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    except (EngineError, OutputError) as error:
        complain(error)
        raise typer.Exit(2) from None
    except NoClientsLeft as error:
        complain(f"{error}; {where()}")
        raise typer.Exit(1) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from printing into our output."""
    _load()
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("flwr", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    yield


def _load() -> None:
    """Import what takes seconds, torch and data set libraries; say so to who waits for it."""
    if "simulations.runs.experiment" in sys.modules:
        return
    with err.status("loading ...") if err.is_terminal else nullcontext():
        import simulations.runs.experiment  # noqa: F401
