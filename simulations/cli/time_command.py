"""Command `time`: what finished runs would have taken, in seconds and joules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.cli.terminal import CONFIG, OVERRIDES, door, existing, out, quiet
from simulations.runs.paths import expanded

if TYPE_CHECKING:
    import pandas as pd

    from simulations.report.timing import TimedRun

app = typer.Typer()


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
        typer.Option("--out", metavar="DIR", help="Write tables and figures there."),
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
        from simulations.report.timing import by_device, notes, table, time_runs
    with door():
        runs = time_runs(folders, system)
        frame = table(runs, accuracy or [])
        devices = by_device(runs)
        _show(frame, devices)
        for note in notes(one.run for one in runs):
            out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        if output:
            _write(runs, {"time.csv": frame, "devices.csv": devices}, output, round_number)


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


def _show(frame: pd.DataFrame, devices: pd.DataFrame) -> None:
    """Show time and energy, what the time is spent on, and what devices spend."""
    from simulations.report.text_table import text_table

    letters = {spec: chr(ord("A") + n) for n, spec in enumerate(dict.fromkeys(frame["system"]))}
    for spec, letter in letters.items():
        out.print(f"{letter}: {spec}", markup=False, highlight=False, soft_wrap=True)

    def show(table: pd.DataFrame, columns: dict[str, str], caption: str, **more: Any) -> None:
        rows = [
            [row["run"], letters[row["system"]], *(_cell(key, row[key]) for key in columns)]
            for row in table.to_dict("records")
        ]
        titles = ["run", "system", *columns.values()]
        out.print(text_table(titles, rows, out.width, caption=caption, **more))

    to = {name: f"to {name[3:]}" for name in frame.columns if name.startswith("to_")}
    caption = "Virtual seconds, joules of all clients; to: s to % of the best accuracy of all runs."
    show(frame, {"seconds": "s", "joules": "J", **to}, caption, spare=("to 50", "to 70"))
    late = ("late",) if (frame["late"] > 0).any() else ()
    names = ("head", "up", "tail", "down", "weights", *late, "waiting")
    shares = {name: f"{name} %" for name in names}
    caption = "Of the longest path through each round; waiting: of clients' time."
    show(frame, {**shares, "slowest": "slowest"}, caption, spare=("waiting %",))
    seconds = {name: f"{name} s" for name in ("compute", "send", "receive", "wait")}
    columns = {"device": "device", "clients": "clients", "joules": "J each", "most_joules": "most"}
    caption = "Of a client over the whole run; 3,600 J are 1 Wh."
    show(devices, {**columns, **seconds}, caption, spare=("wait s", "compute s", "most"))


def _cell(key: str, value: Any) -> str:
    from simulations.system.spending import SHARES

    if key in {*SHARES, "waiting"}:
        return f"{100 * value:.0f}"
    return str(value) if isinstance(value, str | int) else _number(value)


def _number(value: float) -> str:
    return "-" if value != value else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def _write(runs: list[TimedRun], tables: dict[str, pd.DataFrame], output: str, number: int) -> None:
    """Write tables and both figures into a folder."""
    from simulations.report.time_figures import curves, first_gantt
    from simulations.runs.files import make_folder, write_whole, writing

    folder = expanded(output)
    figures = {
        "time.svg": curves(runs, "seconds"),
        "energy.svg": curves(runs, "joules"),
        "gantt.svg": first_gantt(runs, number),
    }
    make_folder(folder)
    for name, frame in tables.items():
        write_whole(folder / name, frame.to_csv(index=False).encode())
    for name, figure in figures.items():
        with writing(folder / name):
            figure.savefig(folder / name)
    text = f"Written: {', '.join(str(folder / name) for name in (*tables, *figures))}"
    out.print(text, markup=False, highlight=False, soft_wrap=True)
