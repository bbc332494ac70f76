"""Command line ``fl-split``: the only place that prints."""

from __future__ import annotations

import inspect
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from rich.table import Table

if TYPE_CHECKING:  # importing costs seconds, which --help can do without
    from simulations.pareto import Study
    from simulations.setup import Setup
    from strategies import RoundReport

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)
out, err = Console(), Console(stderr=True)

CONFIG = typer.Argument(help="TOML file; see configs/ for documented examples.", show_default=False)
OVERRIDES = typer.Argument(
    help="Settings that replace those of the file: [b]clients=20 codec='adc(ratio=0.1)'[/b].",
    metavar="[KEY=VALUE]...",
    show_default=False,
)
OUT = typer.Option(
    "--out", help="Output folder; must not hold a run yet. Default: runs/ and the time."
)
ENGINE = typer.Option(help="What runs the clients: [b]ray[/b] or [b]inline[/b].")


@app.callback()
def main() -> None:
    """Simulate federated split learning of a Vision Transformer, and count every byte.

    Hundreds of Flower virtual clients hold the first blocks of the model (the head) and
    send compressed activations to a server that trains the rest (the tail).

    [b]fl-split run configs/quickstart.toml[/b]             one experiment
    [b]fl-split compare configs/splitfed_baselines.toml[/b] several, side by side
    [b]fl-split pareto configs/pareto_digits.toml[/b]       codecs at equal budgets
    [b]fl-split resume DIR[/b]                              go on with a stopped run
    [b]fl-split list[/b]                                    what can be combined
    """


@app.command()
def run(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    out_dir: Annotated[Path | None, OUT] = None,
    engine: Annotated[str | None, ENGINE] = None,
) -> None:
    """Run one experiment; write results as it goes.

    Example: [b]fl-split run configs/quickstart.toml strategy=fedavg clients=6 rounds=2[/b]
    """
    from simulations.experiment import read_overrides, read_toml

    with _door():
        values = {**read_toml(config), **read_overrides(overrides or [])}
        if "compare" in values:
            raise ValueError(f"{config} compares several runs; use: fl-split compare {config}")
        plans = {"": _with_options(values, engine)}
    _run_all(plans, _folder(values, out_dir))


@app.command()
def compare(
    configs: Annotated[list[str], typer.Argument(metavar="CONFIG... [KEY=VALUE]...")],
    out_dir: Annotated[Path | None, OUT] = None,
    engine: Annotated[str | None, ENGINE] = None,
) -> None:
    r"""Run several experiments and end in one table and plot: accuracy against bytes.

    Give several files, or one file with [b]\[\[compare]][/b] tables: each is a run, with a
    name and the keys in which it differs. KEY=VALUE holds for all runs.
    """
    from simulations.experiment import read_overrides, read_toml

    with _door():
        files = [Path(text) for text in configs if "=" not in text]
        overrides = read_overrides([text for text in configs if "=" in text])
        plans = {}
        for file in files:
            for name, values in _rows(file, read_toml(file), overrides):
                if name in plans:
                    raise ValueError(f"two runs are called {name!r}; give them different names")
                plans[name] = _with_options(values, engine)
        if not plans:
            raise ValueError("give at least one configuration file")
    _run_all(plans, _folder(next(iter(plans.values())), out_dir))


@app.command()
def pareto(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    out_dir: Annotated[Path | None, OUT] = None,
    engine: Annotated[str | None, ENGINE] = None,
) -> None:
    r"""Compare codecs at equal rounds, equal bytes and equal client compute.

    The file's [b]\[pareto][/b] table says which codecs, ratios, seeds and budgets; every
    cell runs until all budgets are used up. Cells finished in an earlier, stopped
    study in the same folder are not run again. Ends in a table, [b]pareto.csv[/b] and
    [b]pareto.svg[/b].

    Example: [b]fl-split pareto configs/pareto_digits.toml[/b]
    """
    from simulations.experiment import read_overrides, read_toml

    with _door():
        from simulations.pareto import Study

        replaced = read_overrides(overrides or [])
        values = {**read_toml(config), **replaced}
        if not isinstance(values.get("pareto"), dict):
            raise ValueError(f"{config} has no [pareto] table")
        for key in sorted(replaced.keys() & {"codec", "downlink", "pareto", "rounds", "seed"}):
            raise ValueError(f"{key} differs between the cells of {config}; set it there")
        study = Study.read(values.pop("pareto"))
        plans = {
            name: {**_with_options(values, engine), **settings}
            for name, settings in study.cells().items()
        }
    folder = _folder(values, out_dir)
    _run_study(study, plans, folder)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run that was stopped.")],
    engine: Annotated[str | None, ENGINE] = None,
) -> None:
    """Go on with a stopped run from its last checkpoint; the result is that of one never stopped.

    Example: [b]fl-split resume runs/20261121-101500 --engine ray[/b]
    """
    with _quiet():
        from simulations.checkpoint import read
        from simulations.experiment import Experiment
        from simulations.setup import prepare

    with _door():
        experiment, checkpoint = read(folder)
        values = experiment.model_dump()
        setup = prepare(Experiment.from_dict(_with_options(values, engine)))
    done, rounds = checkpoint.rounds, setup.experiment.rounds
    out.print(f"{folder}: {done} of {rounds} rounds done", markup=False, highlight=False)
    _run_setups({folder.name: setup}, {folder.name: folder}, folder, checkpoint)


@app.command("list")
def list_() -> None:
    """Show every codec, strategy, partition, data set, model, optimiser and key."""
    with _quiet():
        from simulations.experiment import TABLES, Experiment
        from simulations.partition import FILLED_IN, PARTITIONS

    tables = {
        "Codecs (codec, and what only packs also as downlink)": TABLES["codec"],
        "Strategies (strategy)": TABLES["strategy"],
        "Budgets (budget)": TABLES["budget"],
        "Partitions (partition)": PARTITIONS,
        "Data sets (dataset)": TABLES["dataset"],
        "Models (model)": TABLES["model"],
        "Optimisers (head_optimizer, tail_optimizer)": TABLES["head_optimizer"],
        "Engines (engine)": TABLES["engine"],
    }
    for title, entries in tables.items():
        table = Table(title=title, title_justify="left", show_lines=True)
        for column in ("spec", "what it is"):
            table.add_column(column, overflow="fold")
        for name, entry in entries.items():
            filled_in = FILLED_IN if entries is PARTITIONS else ()
            about = _summary(entry)
            if entries is TABLES["codec"]:
                about += f"\nUp: {entry.up}. Down: {entry.down}."
            table.add_row(escape(_signature(name, entry, filled_in)), escape(about))
        out.print(table)
    keys = Table("key", "default", "what it is", title="Keys", title_justify="left")
    for name, field in Experiment.model_fields.items():
        keys.add_row(name, repr(field.default), field.description)
    out.print(keys)


def _run_study(study: Study, plans: dict[str, dict[str, Any]], folder: Path) -> None:
    """Run the cells of a study that are not finished yet, then show all."""
    from simulations.pareto import FRONT, Cell, front, is_finished, plot, table

    with _door():
        missing = {n: p for n, p in plans.items() if not is_finished(folder / n, p, study)}
    if done := len(plans) - len(missing):
        out.print(f"{done} of {len(plans)} cells are finished already")
    if missing:
        setups, folders = _prepare(missing, folder)
        _run_setups(setups, folders, folder, study=study)
    cells = [Cell(n.rpartition("-seed")[0], plan, folder / n) for n, plan in plans.items()]
    frame = front(cells, study.budgets())
    frame.to_csv(folder / FRONT, index=False)
    plot(frame, folder / "pareto.svg")
    out.print(table(frame))
    out.print("Results:", str(folder), markup=False, highlight=False, soft_wrap=True)


def _run_all(plans: dict[str, dict[str, Any]], folder: Path) -> None:
    """Check all plans, then run one after the other on the same workers."""
    with _quiet():
        from simulations.results import check_folder
    with _door():
        check_folder(folder)
    setups, folders = _prepare(plans, folder)
    _run_setups(setups, folders, folder)


def _prepare(
    plans: dict[str, dict[str, Any]], folder: Path
) -> tuple[dict[str, Setup], dict[str, Path]]:
    """Check all plans, load their data and build their models; make `folder`."""
    with _quiet():
        from simulations.experiment import Experiment
        from simulations.results import check_folder, make_folder
        from simulations.setup import prepare

    with _door():
        folders = {name: folder / name if name else folder for name in plans}
        setups = {}
        for name, values in plans.items():
            with _of(name):
                check_folder(folders[name])
                setups[name] = prepare(Experiment.from_dict({**values, "out": str(folders[name])}))
        engines = {setup.experiment.engine for setup in setups.values()}
        if len(engines) > 1:
            raise ValueError(f"all runs must have one engine, got {', '.join(sorted(engines))}")
        make_folder(folder)
    return setups, folders


def _run_setups(
    setups: dict[str, Setup],
    folders: dict[str, Path],
    folder: Path,
    resumed: Any = None,
    study: Study | None = None,
) -> None:
    """Run what has been checked, on the same workers; show a table in the end.

    A study shows its own, and its budgets end each run.
    """
    from simulations import client_app, report
    from simulations.results import COMPARISON, SUMMARY
    from strategies import NoClientsLeft

    engine = next(iter(setups.values())).experiment.build("engine")
    summaries = {}
    with (
        _ends(folder, folders.values(), study is not None),
        engine.session(client_app.app) as session,
    ):
        for name, setup in setups.items():
            try:
                _train(_grid(session, setup), setup, name, resumed, study)
            except NoClientsLeft as error:
                if study is None:
                    raise
                _complain(f"{name}: {error}")  # one codec that fails must not end a study
            summaries[name] = json.loads((folders[name] / SUMMARY).read_text())
    if study:
        return
    frame = report.comparison({name or folder.name: s for name, s in summaries.items()})
    out.print(report.comparison_table(frame))
    if len(setups) > 1:
        frame.to_csv(folder / COMPARISON, index=False)
        report.plot(folders, folder / "comparison.svg")
    out.print("Results:", str(folder), markup=False, highlight=False, soft_wrap=True)


def _grid(session: Any, setup: Setup) -> Any:
    return session(setup.worker(), setup.experiment.clients, setup.experiment.timeout)


def _train(grid: Any, setup: Setup, name: str, resumed: Any, study: Study | None) -> None:
    from simulations import server_app

    experiment = setup.experiment
    specs = (experiment.strategy, experiment.codec)
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
        watch = partial(_show, progress, task, label, experiment.rounds, {"up": 0, "down": 0})
        server_app.app(grid, server_app.LocalContext(setup, watch, resumed, study))


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
    news = f"{accuracy} up {decimal(sent['up'])} down {decimal(sent['down'])}"
    progress.update(task, advance=1, news=news)
    for client, traffic in sorted(report.traffic.items()):
        if traffic.dropped:
            text = f"round {row['round']}: client {client} dropped: {traffic.dropped}"
            out.print(text, markup=False, highlight=False)
    if not out.is_terminal and row["round"] % max(1, rounds // 10) == 0:
        text = f"{label}: round {row['round']}/{rounds} accuracy {news}"
        out.print(text, markup=False, highlight=False)


def _rows(
    file: Path, values: dict[str, Any], overrides: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and settings of each run that a configuration file asks for."""
    rows = values.pop("compare", None)
    if rows is None:
        yield file.stem, {**values, **overrides}
        return
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: compare must be a list of tables, [[compare]]")
    for number, row in enumerate(rows, start=1):
        name = str(row.pop("name", f"run-{number}"))
        if name in {"", ".", ".."} or Path(name).name != name:
            raise ValueError(f"{file}: name must be usable as a folder's, got {name!r}")
        for key in overrides:
            if key in row:
                raise ValueError(f"{key} differs between the runs of {file}; set it there")
        yield name, {**values, **overrides, **row}


def _with_options(values: dict[str, Any], engine: str | None) -> dict[str, Any]:
    return values if engine is None else {**values, "engine": engine}


def _folder(values: dict[str, Any], option: Path | None) -> Path:
    return option or Path(str(values.get("out") or time.strftime("runs/%Y%m%d-%H%M%S")))


@contextmanager
def _door() -> Iterator[None]:
    """Turn bad input into one line and exit code 2."""
    try:
        with _quiet():
            yield
    except ValueError as error:
        _complain(error)
        raise typer.Exit(2) from None


def _complain(error: object) -> None:
    text = " ".join(str(error).split())
    err.print(f"[red]error:[/red] {escape(text)}", soft_wrap=True, highlight=False)


@contextmanager
def _of(name: str) -> Iterator[None]:
    """Say which of several runs a message is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name else str(error)) from None


@contextmanager
def _ends(folder: Path, runs: Iterable[Path], is_study: bool) -> Iterator[None]:
    """Say what became of a run that did not reach its end, and how to go on."""
    from simulations.checkpoint import FILE
    from simulations.grid import EngineError
    from simulations.results import OutputError
    from strategies import NoClientsLeft

    def where() -> str:
        if is_study:
            return f"finished cells are in {folder}; to go on: the same command, --out {folder}"
        stopped = [run for run in runs if (run / FILE).exists()]
        advice = f"; to go on: fl-split resume {stopped[0]}" if stopped else ""
        return f"finished rounds are in {folder}{advice}"

    try:
        yield
    except KeyboardInterrupt:
        err.print(f"stopped; {where()}", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    except (EngineError, OutputError) as error:
        _complain(error)
        raise typer.Exit(2) from None
    except NoClientsLeft as error:
        _complain(f"{error}; {where()}")
        raise typer.Exit(1) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep libraries from printing into our output."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("flwr", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    yield


def _signature(name: str, entry: Callable[..., Any], filled_in: Iterable[str]) -> str:
    parts = []
    for key, parameter in inspect.signature(entry).parameters.items():
        if key not in filled_in:
            is_needed = parameter.default is inspect.Parameter.empty
            parts.append(key if is_needed else f"{key}={parameter.default!r}")
    return f"{name}({', '.join(parts)})"


def _summary(entry: Callable[..., Any]) -> str:
    target = entry.func if isinstance(entry, partial) else entry
    return (target.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    app()
