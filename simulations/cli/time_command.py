"""Command `time`: what finished runs would have taken, in seconds and joules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from simulations.cli.terminal import CONFIG, OVERRIDES, door, existing, out, quiet
from simulations.runs.paths import expanded

if TYPE_CHECKING:
    import pandas as pd

    from simulations.report.timing import TimedRun

app = typer.Typer()

FILES = ("time.csv", "time.svg", "gantt.svg")


@app.command()
def time(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of finished runs.")
    ],
    system: Annotated[
        list[str],
        typer.Option(
            "--system", "-s", metavar="SPEC", help="Devices, network and server; may be repeated."
        ),
    ],
    accuracy: Annotated[
        list[float] | None,
        typer.Option(metavar="SHARE", min=0, max=1, help="Also the time to this accuracy."),
    ] = None,
    round_number: Annotated[
        int, typer.Option("--round", min=1, help="Which round the Gantt chart shows.")
    ] = 1,
    output: Annotated[
        str | None,
        typer.Option("--out", metavar="DIR", help="Write time.csv, time.svg and gantt.svg there."),
    ] = None,
) -> None:
    r"""Tell what finished runs would have taken on devices and networks of any kind.

    Nothing is trained: runs have recorded what they did. Times are to shares of the best
    accuracy of all the runs that are given; runs that differ in their seed are averaged.

    Example: [b]fl-split time runs/a -s "mix(pi5=0.5, phone_mid=0.5) | lte()" -s "wifi()"[/b]
    """
    with door():
        folders = [existing(folder) for folder in folders]
    with quiet():
        from simulations.report.timing import table, time_runs
    with door():
        runs = time_runs(folders, system)
        frame = table(runs, accuracy or [])
        out.print(_shown(frame))
        if output:
            _write(runs, frame, expanded(output), round_number)


@app.command()
def calibrate(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    name: Annotated[str, typer.Option(help="What to call the device.")] = "mine",
) -> None:
    r"""Time the head of an experiment on this machine; print it as a device for [b]system[/b].

    Put what it prints into a file, fill in the watts, and name both in a system.

    Example: [b]fl-split calibrate quickstart > mine.toml[/b], then
    [b]system="devices('mine', table='mine.toml')"[/b]
    """
    with door():
        from simulations.runs.misspelt import check_names
        from simulations.runs.settings import read_overrides, read_toml
        from simulations.runs.shipped import STUDIES, find

        values = {**read_toml(find(config)), **read_overrides(overrides or [])}
        values = {key: value for key, value in values.items() if key not in STUDIES}
        check_names(values)
    with quiet():
        from simulations.runs.calibration import calibrate as measured
        from simulations.runs.experiment import Experiment
        from simulations.runs.setup import prepare
    with door():
        found = measured(prepare(Experiment.from_dict(values)))
    out.print(found.row(name), markup=False, highlight=False, soft_wrap=True, end="")


def _shown(frame: pd.DataFrame) -> Table:
    """Show a row for each run and system."""
    found = Table(
        box=SIMPLE, caption="seconds to % of the best accuracy; shares of the longest path"
    )
    found.add_column("run", overflow="fold")
    found.add_column("system", overflow="fold")
    to = [name for name in frame.columns if name.startswith("to_")]
    shares = ["head", "up", "tail", "down", "weights", "waiting"]
    titles = ["s", "J", *(f"to {name[3:]}" for name in to), *(f"{name} %" for name in shares)]
    for title in [*titles, "slowest"]:
        found.add_column(title, justify="right")
    for row in frame.to_dict("records"):
        seconds = [_number(row[name]) for name in ["seconds", "joules", *to]]
        parts = [f"{100 * row[name]:.0f}" for name in shares]
        cells = (row["run"], row["system"], *seconds, *parts, row["slowest"])
        found.add_row(*(Text(str(cell)) for cell in cells))
    return found


def _number(value: float) -> str:
    return "-" if value != value else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def _write(runs: list[TimedRun], frame: pd.DataFrame, folder: Path, number: int) -> None:
    """Write the table and both figures."""
    from simulations.report.time_figures import curves, first_gantt
    from simulations.runs.files import make_folder, write_whole, writing

    make_folder(folder)
    write_whole(folder / FILES[0], frame.to_csv(index=False).encode())
    for name, figure in zip(FILES[1:], (curves(runs), first_gantt(runs, number)), strict=True):
        with writing(folder / name):
            figure.savefig(folder / name)
    text = f"Written: {', '.join(str(folder / name) for name in FILES)}"
    out.print(text, markup=False, highlight=False, soft_wrap=True)
