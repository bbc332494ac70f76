"""Shared by all commands: errors of input, progress, and the message when a run stops."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from simulations.cli.data_view import counting, decided
from simulations.cli.stopped import at_once
from simulations.cli.streams import Terminal
from simulations.runs.paths import expanded

if TYPE_CHECKING:  # importing costs seconds, which --help can do without
    from simulations.data.splits import Decision
    from simulations.runs.checkpoint import Checkpoint
    from simulations.runs.experiment import Experiment
    from simulations.runs.news import News
    from simulations.runs.server_app import Watch
    from simulations.runs.setup import Setup
    from strategies import RoundResult

out, err = Terminal(), Terminal(stderr=True)

CONFIG = typer.Argument(
    help="TOML file, or the name of one that comes with fl-split; see [b]fl-split configs[/b].",
    show_default=False,
)
OVERRIDES = typer.Argument(
    help="Settings that replace those of the file: [b]clients=20 codec='adc(ratio=0.1)'[/b].",
    metavar="[KEY=VALUE]...",
    show_default=False,
)

INTERVAL = 1.0
"""Seconds between two looks at what runs."""

AROUND = 9
"""Lines of a terminal that a table of runs leaves for the rest."""


def run_all(plans: dict[str, dict[str, Any]], folder: Path) -> None:
    """Check all plans, then run one after the other on the same workers."""
    with quiet():
        from simulations.api.plans import prepare_all
    with door(), counting(err) as progress:
        setups = prepare_all(plans, folder, progress)
    run_setups(setups, folder)


def run_setups(setups: dict[str, Setup], folder: Path, resumed: Checkpoint | None = None) -> None:
    """Run what has been checked, on the same workers; show a table in the end."""
    from simulations import report
    from simulations.runs.news import early_end
    from simulations.runs.run import run_each

    show_decisions([setup.decisions for setup in setups.values()])
    explain([setup.experiment for setup in setups.values()])
    folders = [Path(setup.experiment.out) for setup in setups.values()]
    with ends(folder, folders):
        summaries = run_each(setups, partial(_shown, resumed=resumed), resumed)
    frame = report.comparison({name or folder.name: s for name, s in summaries.items()})
    out.print(report.comparison_table(frame, out.width))
    for name, summary in summaries.items():
        for text in early_end(summary):
            label = f"{name}: " if name else ""
            out.print(f"{label}{text}", markup=False, highlight=False, soft_wrap=True)
    if len(setups) > 1:
        with door():
            figure = report.write_comparison(summaries, folder)
        out.print("Figure:", str(figure), markup=False, highlight=False, soft_wrap=True)
    out.print("Results:", str(folder), markup=False, highlight=False, soft_wrap=True)


def show_decisions(several: Iterable[Sequence[Decision]]) -> None:
    """Show what was decided about the data of runs; once where runs share it."""
    for decisions in dict.fromkeys(map(tuple, several)):
        out.print(decided(decisions), highlight=False)


def explain(experiments: Sequence[Experiment]) -> None:
    """Warn of samples that nobody holds, and say what guessing the commonest class would give."""
    from simulations.runs.news import left_to_nobody

    for text in left_to_nobody(experiments):
        err.print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True, highlight=False)
    for experiment in experiments:
        if experiment.parts.strategy.keeps_models:
            name = experiment.strategy.partition("(")[0]
            own = "client %" if experiment.holdout else "holdout=0.2 shows accuracy"
            text = (
                f"{name}: accuracy is the mean over the clients' own models on the whole test "
                f"split; {own} on their own samples"
            )
            out.print(text, markup=False, highlight=False, soft_wrap=True)
            return


@contextmanager
def _shown(name: str, setup: Setup, resumed: Checkpoint | None) -> Iterator[Watch]:
    """Show a run while it goes on, as a bar with its latest round; yield what watches it."""
    from simulations.runs.news import News

    experiment = setup.experiment
    news = News(name or _label(experiment), experiment.rounds)
    done = resumed.rounds if resumed else 0
    if resumed:
        news.go_on(Path(experiment.out), done)
    columns = (
        TextColumn("[b]{task.description}[/b]"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        TextColumn("{task.fields[news]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=out, disable=not out.is_terminal) as progress:
        task = progress.add_task(
            escape(news.label), total=news.rounds, completed=done, news="starting"
        )
        yield partial(_show, progress, task, news)


def _label(experiment: Experiment) -> str:
    """Name a run after its strategy and, if it sends smashed data, its codec."""
    is_split = experiment.parts.strategy.sends_smashed_data
    specs = (experiment.strategy, *([experiment.codec] if is_split else []))
    return " ".join(spec.partition("(")[0] for spec in specs)


def _show(
    progress: Progress, task: TaskID, news: News, row: dict[str, Any], result: RoundResult
) -> None:
    """Show a finished round: on the bar, or without a terminal as a line now and then."""
    from simulations.runs.news import dropped_clients

    latest = news.of_round(row)
    progress.update(task, advance=1, news=latest)
    lines = [] if out.is_terminal else news.line(row, latest)
    for line in (*dropped_clients(result), *lines):
        out.print(line, markup=False, highlight=False)


def existing(folder: Path) -> Path:
    """Return `folder`, `~` replaced; raise ValueError at once if there is no such folder."""
    found = expanded(folder)
    if not os.path.isdir(found):
        raise ValueError(f"no folder {str(found)!r}")
    return found


@contextmanager
def door() -> Iterator[None]:
    """Turn bad input into one line and exit code 2."""
    try:
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
def ends(folder: Path, runs: Collection[Path]) -> Iterator[None]:
    """Say why a run did not reach its end, and how to go on."""
    from simulations.runs.run import STOPS, Stop

    try:
        yield
    except STOPS as error:
        stop = Stop.because(error, folder, runs)
        if stop.is_error:
            complain(stop.text)
        else:
            err.print(stop.text, markup=False, soft_wrap=True)
        raise typer.Exit(stop.code) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Load libraries, which takes seconds, and keep them from printing into our output."""
    _load()
    from simulations.runs.quiet import quiet_libraries

    quiet_libraries()
    yield


def _load() -> None:
    """Import torch and data set libraries, which takes seconds; tell the user meanwhile."""
    if "simulations.runs.experiment" in sys.modules:
        return
    with at_once(), err.status("loading ...") if err.is_terminal else nullcontext():
        import simulations.runs.experiment  # noqa: F401
