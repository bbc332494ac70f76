"""Command line ``fl-split``: the only place that prints."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich")
out, err = Console(), Console(stderr=True)

CONFIG = typer.Argument(help="TOML file; see configs/ for documented examples.", show_default=False)
OVERRIDES = typer.Argument(
    help="Settings that replace those of the file: [b]clients=20 codec='adc(ratio=0.1)'[/b].",
    metavar="[KEY=VALUE]...",
    show_default=False,
)
OUT = typer.Option(help="Output folder; must not hold a run yet. Default: runs/ and the time.")
ENGINE = typer.Option(help="What runs the clients: [b]ray[/b] or [b]inline[/b].")


@app.callback()
def main() -> None:
    """Simulate federated split learning of a Vision Transformer, and count every byte.

    Hundreds of Flower virtual clients hold the first blocks of the model (the head) and
    send compressed activations to a server that trains the rest (the tail).

    [b]fl-split run configs/quickstart.toml[/b]             one experiment
    [b]fl-split compare configs/splitfed_baselines.toml[/b] several, side by side
    [b]fl-split list[/b]                                    what can be combined
    """


@app.command()
def run(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    out_dir: Annotated[Path | None, typer.Option("--out")] = None,
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
    out_dir: Annotated[Path | None, typer.Option("--out")] = None,
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
    _run_all(plans, _folder(overrides, out_dir))


@app.command("list")
def list_() -> None:
    """Show every codec, strategy, partition, data set, model, optimiser and key."""
    with _quiet():
        from simulations.experiment import TABLES, Experiment
        from simulations.partition import PARTITIONS

    tables = {
        "Codecs (codec)": TABLES["codec"],
        "Strategies (strategy)": TABLES["strategy"],
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
            table.add_row(_signature(name, entry), _summary(entry))
        out.print(table)
    keys = Table("key", "default", "what it is", title="Keys", title_justify="left")
    for name, field in Experiment.model_fields.items():
        keys.add_row(name, repr(field.default), field.description)
    out.print(keys)


def _run_all(plans: dict[str, dict[str, Any]], folder: Path) -> None:
    """Check all plans, then run one after the other on the same workers."""
    with _quiet():
        from simulations import client_app, report
        from simulations.experiment import Experiment
        from simulations.results import SUMMARY, check_folder
        from simulations.setup import prepare

    with _door():
        folders = {name: folder / name if name else folder for name in plans}
        experiments = {}
        for name, values in plans.items():
            with _of(name):
                check_folder(folders[name])
                values = {**values, "out": str(folders[name])}
                experiments[name] = Experiment.from_dict(values)
                prepare(experiments[name])
    engine = next(iter(experiments.values())).build("engine")
    summaries = {}
    with _ends(folder), engine.session(client_app.app) as session:
        for name, experiment in experiments.items():
            setup = prepare(experiment)
            _train(session(setup.worker(), experiment.clients), setup, name)
            summaries[name] = json.loads((folders[name] / SUMMARY).read_text())
    frame = report.comparison({name or folder.name: s for name, s in summaries.items()})
    out.print(report.comparison_table(frame))
    if len(plans) > 1:
        frame.to_csv(folder / "comparison.csv", index=False)
        report.plot(folders, folder / "comparison.svg")
    out.print(f"Results: [b]{folder}[/b]")


def _train(grid: Any, setup: Any, name: str) -> None:
    from simulations import report, server_app

    experiment = setup.experiment
    sent = {"up": 0, "down": 0}
    columns = (
        TextColumn("[b]{task.description}[/b]"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        TextColumn("{task.fields[news]}"),
        TimeRemainingColumn(compact=True),
    )
    label = name or f"{experiment.strategy} {experiment.codec}".replace("()", "")
    with Progress(*columns, console=out, disable=not out.is_terminal) as progress:
        task = progress.add_task(label, total=experiment.rounds, news="starting")

        def watch(row: dict[str, Any]) -> None:
            for way in sent:
                sent[way] += row[f"payload_bytes_{way}"] + row[f"head_bytes_{way}"]
            up, down = (decimal(sent[way]) for way in ("up", "down"))
            news = f"{report.percent(row['accuracy'])} up {up} down {down}"
            progress.update(task, advance=1, news=news)
            if row["dropped"]:
                out.print(f"round {row['round']}: {row['dropped']} clients dropped")
            if not out.is_terminal and row["round"] % max(1, experiment.rounds // 10) == 0:
                out.print(f"{label}: round {row['round']}/{experiment.rounds}  accuracy {news}")

        server_app.app(grid, server_app.LocalContext(setup, watch))


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
    for row in rows:
        name = row.pop("name", None) or row.get("strategy") or f"run-{len(row)}"
        for key in overrides:
            if key in row:
                raise ValueError(f"{key} differs between the runs of {file}; set it there")
        yield str(name), {**values, **overrides, **row}


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
        err.print(
            f"[red]error:[/red] {' '.join(str(error).split())}", soft_wrap=True, highlight=False
        )
        raise typer.Exit(2) from None


@contextmanager
def _of(name: str) -> Iterator[None]:
    """Say which of several runs a message is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name else str(error)) from None


@contextmanager
def _ends(folder: Path) -> Iterator[None]:
    """Say what became of a run that did not reach its end."""
    from strategies import NoClientsLeft

    try:
        yield
    except KeyboardInterrupt:
        err.print(f"stopped; finished rounds are in {folder}")
        raise typer.Exit(130) from None
    except NoClientsLeft as error:
        err.print(f"[red]error:[/red] {error}; finished rounds are in {folder}", soft_wrap=True)
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


def _signature(name: str, entry: Callable[..., Any]) -> str:
    import inspect

    filled_in = {"num_partitions", "partition_by", "seed"} if isinstance(entry, partial) else set()
    parts = []
    for key, parameter in inspect.signature(entry).parameters.items():
        if key in filled_in:
            continue
        is_needed = parameter.default is inspect.Parameter.empty
        parts.append(key if is_needed else f"{key}={parameter.default!r}")
    return f"{name}({', '.join(parts)})"


def _summary(entry: Callable[..., Any]) -> str:
    target = entry.func if isinstance(entry, partial) else entry
    return (target.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    app()
