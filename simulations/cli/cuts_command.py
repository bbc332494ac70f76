"""Command `cuts`: which cut suits which kind of device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.cli.terminal import CONFIG, OVERRIDES, door, out, quiet

if TYPE_CHECKING:
    from simulations.studies.cut_choice import Choice

app = typer.Typer()

ONLY = typer.Option(
    "--cuts", metavar="N,N,...", help="Numbers of stages to compare; all by default."
)


@app.command()
def cuts(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            "-s",
            metavar="SPEC",
            help="Devices and network; else the experiment's.",
        ),
    ] = None,
    only: Annotated[str, ONLY] = "",
    steps: Annotated[
        int, typer.Option(metavar="N", min=2, help="Steps that are rehearsed of a longer round.")
    ] = 4,
) -> None:
    r"""Tell which cut makes rounds shortest on devices of several kinds, one for all or a mixture.

    Every cut is rehearsed for a few steps; a model of devices and network times all mixtures.
    Devices get no cut for which they have too little memory. Accuracy has no part in it.

    Example: [b]fl-split cuts quickstart -s "mix(pi_zero_2=0.5, jetson_nano=0.5) | lte()"[/b]
    """
    with door():
        from simulations.runs.misspelt import check_names
        from simulations.runs.settings import read_overrides, read_toml
        from simulations.runs.shipped import STUDIES, find

        values = {**read_toml(find(config)), **read_overrides(overrides or [])}
        values = {key: value for key, value in values.items() if key not in STUDIES}
        check_names(values)
        chosen = _numbers(only)
    with quiet():
        from simulations.runs.experiment import Experiment
        from simulations.studies.cut_choice import choose
        from simulations.system.system import parse_system
    with door():
        experiment = Experiment.from_dict(values)
        devices = parse_system(system) if system else experiment.parts.system
        if devices is None:
            raise ValueError("cuts are chosen for devices; give --system, as 'mix(pi4=1, pi5=1)'")
        found = choose(experiment, devices, chosen, steps)
    _show(found)


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--cuts must be numbers with commas between, as 1,2,4, got {text!r}")
    return [*map(int, parts)]


def _show(found: Choice) -> None:
    """Show what each device takes at each cut, then the best single cut and the best mixture."""
    from simulations.report.text_table import text_table
    from simulations.system.quantities import told

    rows = [
        [
            one.device.name, f"{one.clients:,}", str(one.cut), told(one.memory, "B"),
            "yes" if one.fits else "no", f"{one.seconds:.3g}", f"{one.joules:.3g}",
            f"{found.singles[one.cut]:.4g}" if one.cut in found.singles else "-",
        ]
        for one in sorted(found.table, key=lambda one: one.device.name)
    ]  # fmt: skip
    titles = ["device", "clients", "cut", "memory", "fits", "s", "J", "round s"]
    caption = (
        f"Of a client in a round of {found.steps:,} steps: its own work, without waiting. Round: "
        "of all clients, if all are cut there."
    )
    out.print(text_table(titles, rows, out.width, caption=caption, spare=("clients", "fits")))
    single, mixture = found.single, found.mixture
    lines = ["no single cut fits into the memory of all devices"]
    if single:
        cut, seconds = single
        gain = 100 * (1 - mixture.seconds / seconds)
        lines = [f"best single cut: cut = {cut}, {seconds:.4g} s a round"]
    lines.append(f"best of {found.tried:,} mixtures: {mixture.seconds:.4g} s a round")
    if single:
        lines[-1] += f", {gain:.2g} % less" if gain > 0 else ", which is the same"
    lines.append(f'cut = "{mixture.key}"')
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
