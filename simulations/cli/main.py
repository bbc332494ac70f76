"""Command line ``fl-split``: runs, comparisons, reports; studies are in study_commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from simulations.cli import (
    check_command,
    configs_command,
    cuts_command,
    data_commands,
    infer_command,
    list_command,
    study_commands,
    time_command,
    within_command,
)
from simulations.cli.data_view import counting
from simulations.cli.streams import Commands
from simulations.cli.terminal import (
    CONFIG,
    OVERRIDES,
    door,
    err,
    existing,
    of,
    out,
    quiet,
    run_all,
    run_setups,
)
from simulations.runs.paths import chosen_folder, expanded

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

Form = Literal["html", "md"]

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)
OUT = typer.Option(
    "--out",
    metavar="DIR",
    help="Output folder; must not hold a run yet. Default: runs/ and the time.",
)
app.add_typer(study_commands.app)
app.add_typer(data_commands.app)
app.add_typer(list_command.app)
app.add_typer(configs_command.app)
app.add_typer(check_command.app)
app.add_typer(time_command.app)
app.add_typer(within_command.app)
app.add_typer(cuts_command.app)
app.add_typer(infer_command.app)
ENGINE = typer.Option(help="What runs the clients: [b]ray[/b] or [b]inline[/b].")


@app.callback()
def main() -> None:
    """Simulate federated split learning of ViTs, ResNet-18 and LeNet, and count every byte.

    Hundreds of Flower virtual clients hold the first layers of the model (the
    head) and send compressed activations to a server that trains the rest (the tail).

    [b]fl-split run quickstart[/b]              one experiment
    [b]fl-split compare splitfed_baselines[/b]  several, side by side
    [b]fl-split pareto pareto_digits[/b]        codecs at equal budgets
    [b]fl-split sweep CONFIG seed=0..4[/b]      a grid, several runs at once
    [b]fl-split watch DIR[/b]                   what runs are doing
    [b]fl-split report DIR -o report.html[/b]   tables and figures of runs
    [b]fl-split time DIR -s SPEC[/b]            seconds and joules on devices and networks
    [b]fl-split within DIR -b SPEC[/b]          accuracy at equal bytes, operations, seconds
    [b]fl-split infer DIR[/b]                   which images leave the device early
    [b]fl-split calibrate CONFIG[/b]            this machine as a device
    [b]fl-split data SPEC[/b]                   what would be trained on
    [b]fl-split partition CONFIG[/b]            who would hold which samples
    [b]fl-split cache[/b]                       decoded images on disk
    [b]fl-split resume DIR[/b]                  go on with a stopped run
    [b]fl-split list[/b]                        what can be combined
    [b]fl-split configs[/b]                     which CONFIG come with fl-split
    [b]fl-split check SPEC[/b]                  whether a part of yours keeps the laws
    """


@app.command()
def run(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    out_dir: Annotated[str | None, OUT] = None,
    engine: Annotated[str | None, ENGINE] = None,
) -> None:
    """Run one experiment; write results as it goes.

    Example: [b]fl-split run quickstart strategy=fedavg clients=6 rounds=2[/b]
    """
    with door():
        from simulations.runs.misspelt import check_names
        from simulations.runs.settings import read_overrides, read_toml
        from simulations.runs.shipped import find

        values = {**read_toml(find(config)), **read_overrides(overrides or [])}
        for study in sorted(values.keys() & {"compare", "pareto", "sweep"}):
            raise ValueError(f"{config} asks for several runs; use: fl-split {study} {config}")
        folder = chosen_folder(out_dir, values.get("out"))
        plans = {"": _with_options(values, engine)}
        check_names(plans[""])
    run_all(plans, folder)


@app.command()
def compare(
    configs: Annotated[list[str], typer.Argument(metavar="CONFIG... [KEY=VALUE]...")],
    out_dir: Annotated[str | None, OUT] = None,
    engine: Annotated[str | None, ENGINE] = None,
) -> None:
    r"""Run several experiments and end in one table and plot: accuracy against bytes.

    Give several files, or one file with [b]\[\[compare]][/b] tables: each is a run, with a
    name and the keys in which it differs. KEY=VALUE holds for all runs.
    """
    with door():
        from simulations.runs.misspelt import check_names
        from simulations.runs.settings import read_overrides, read_toml, several
        from simulations.runs.shipped import find

        files = [find(text) for text in configs if "=" not in text]
        overrides = read_overrides([text for text in configs if "=" in text])
        found = several([(file, read_toml(file)) for file in files], overrides)
        plans = {name: _with_options(values, engine) for name, values in found.items()}
        folder = chosen_folder(out_dir, next(iter(plans.values())).get("out"))
        for name, values in plans.items():
            with of(name):
                check_names(values)
    run_all(plans, folder)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of runs, at any depth.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="File to write.")
    ] = "report.html",
    baseline: Annotated[
        str | None,
        typer.Option(help="Whom to compare with: part of a configuration's label."),
    ] = None,
    form: Annotated[
        Form | None, typer.Option("--format", help="By default from the name of the file.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Make the page anew until all runs have ended.")
    ] = False,
    every: Annotated[int, typer.Option(min=1, help="Seconds between two pages.")] = 30,
    system: Annotated[
        list[str] | None,
        typer.Option(
            "--system", "-s", metavar="SPEC", help="Time all runs under this; may be repeated."
        ),
    ] = None,
) -> None:
    """Make one page of tables and figures from finished runs; runs differing in seed are grouped.

    With [b]--follow[/b] of runs that go on too; an open page then reloads itself.

    Example: [b]fl-split report runs/study -o report.html --baseline "sflv2, identity"[/b]
    """
    with door():
        folders = [existing(folder) for folder in folders]
        file = expanded(output)
        if os.path.isdir(file):
            raise ValueError(f"output: {str(file)!r} is a folder; give a file")
    with quiet():
        from simulations.cli.follow import follow_runs
        from simulations.report.page import build, form_of, older_marks, write
    with door():
        chosen = form or form_of(file)
        if follow:
            if system:
                raise ValueError("--system times finished runs; leave --follow out")
            follow_runs(folders, file, baseline, chosen, every)
        page = build(folders, baseline, older_marks(file), systems=system or [])
        write(page, file, chosen)
    for skipped in page.collection.left_out:
        out.print(f"left out: {skipped.name}: {skipped.flaw}", markup=False, highlight=False)
    text = f"{page.facts['runs']}: {file}"
    out.print(text, markup=False, highlight=False, soft_wrap=True)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run that was stopped.")],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    engine: Annotated[str | None, ENGINE] = None,
) -> None:
    """Go on with a stopped run from its last checkpoint; the result is that of one never stopped.

    Keys that change no result may have other values, as device, stack, engine and timeout.

    Example: [b]fl-split resume runs/20261121-101500 device=cpu --engine ray[/b]
    """
    with door():
        folder = existing(folder)
    with quiet():
        from simulations.runs.checkpoint import read
        from simulations.runs.provenance import resumed_elsewhere
        from simulations.runs.settings import read_overrides
        from simulations.runs.setup import prepare

    with door():
        keys = _with_options(read_overrides(overrides or []), engine)
        experiment, checkpoint = read(folder, keys)
        with counting(err) as progress:
            setup = prepare(experiment, progress)
    if text := resumed_elsewhere(checkpoint.cpu, setup.device):
        err.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)
    done, rounds = checkpoint.rounds, setup.experiment.rounds
    out.print(f"{folder}: {done} of {rounds} rounds done", markup=False, highlight=False)
    run_setups({folder.name: setup}, folder, checkpoint)


def _with_options(values: dict[str, Any], engine: str | None) -> dict[str, Any]:
    return values if engine is None else {**values, "engine": engine}


if __name__ == "__main__":
    app()
