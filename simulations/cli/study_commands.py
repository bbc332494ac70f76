"""Commands around studies of many runs: what is trained on, grids, and a look at what runs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live

from simulations.cli.terminal import (
    AROUND,
    CONFIG,
    INTERVAL,
    OVERRIDES,
    door,
    existing,
    out,
    quiet,
)
from simulations.runs.misspelt import check_names
from simulations.runs.paths import chosen_folder, expanded
from simulations.runs.settings import read_overrides, read_toml, read_values
from simulations.runs.shipped import STUDIES, find

app = typer.Typer()

OUT = typer.Option("--out", metavar="DIR", help="Folder of all cells. Default: runs/ and the time.")
JOBS = typer.Option(min=0, help="Most runs at once; 0 takes one per core, as memory allows.")
DRY = typer.Option("--dry-run", help="Show the cells and what they will cost; run nothing.")


@app.command()
def partition(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    out_dir: Annotated[
        str | None,
        typer.Option("--out", metavar="DIR", help="Also write partition.csv and partition.svg."),
    ] = None,
    nodes_dir: Annotated[
        str | None,
        typer.Option(
            "--nodes",
            metavar="DIR",
            help="Also write the images: a folder for each client, as real nodes have them, and "
            "one of the test images.",
        ),
    ] = None,
) -> None:
    """Show who would hold which samples, without training anything.

    Example: [b]fl-split partition quickstart partition="dirichlet(alpha=0.1)"[/b]
    """
    with door():
        values = {**read_toml(find(config)), **read_overrides(overrides or [])}
        for study in STUDIES:
            values.pop(study, None)
        folder = None if out_dir is None else chosen_folder(out_dir)
        check_names(values)
    with quiet():
        from simulations.data import statistics
        from simulations.runs.experiment import Experiment
        from simulations.runs.experiment_data import prepare_labels
        from simulations.runs.files import make_folder, writing
    with door():
        experiment = Experiment.from_dict(values)
        table, names, unheld = prepare_labels(experiment)
        if folder:
            make_folder(folder)
    counts = statistics.count(table)
    out.print(f"{experiment.dataset}, {experiment.partition}, seed {experiment.seed}", markup=False)
    out.print(statistics.summary_table(counts, unheld), statistics.clients_table(counts))
    if folder:
        with door(), writing(folder):
            statistics.write(table, folder)
            statistics.partition_plot(counts, names, folder / statistics.PLOT)
        out.print("Written:", str(folder), markup=False, highlight=False, soft_wrap=True)
    if nodes_dir is not None:
        with quiet():
            from simulations.runs.nodes import write_for_nodes
        with door():
            spec = write_for_nodes(experiment, expanded(nodes_dir).absolute())
        out.print(f"Written: {nodes_dir}", markup=False, highlight=False, soft_wrap=True)
        out.print(f"dataset = {json.dumps(spec)}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def sweep(
    config: Annotated[Path, CONFIG],
    grid: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE,VALUE...]...")] = None,
    out_dir: Annotated[str | None, OUT] = None,
    jobs: Annotated[int, JOBS] = 0,
    dry_run: Annotated[bool, DRY] = False,
) -> None:
    r"""Run a grid of experiments, several at once, each in a folder of its own.

    A key may have several values: separated by commas, or a range of whole numbers as
    [b]seed=0..4[/b]; also in the file, as lists in a [b]\[sweep][/b] table, which the command
    line replaces. Each cell is a process with the [b]inline[/b] engine; with
    [b]engine="ray(address='auto')"[/b] cells run on that cluster, one after the other. The
    same command with the same [b]--out[/b] goes on with a stopped sweep: finished cells
    are kept, others continue from their last checkpoint.

    Example: [b]fl-split sweep quickstart strategy=parallel,sflv1 seed=0..2[/b]
    """
    with door():
        _check_out(out_dir)
        values = read_toml(find(config))
        for study in sorted(values.keys() & {"compare", "pareto"}):
            raise ValueError(f"{config} has a table of its own; use: fl-split {study} {config}")
        check_names({key: value for key, value in values.items() if key != "sweep"})
        for key, equals, text in (pair.partition("=") for pair in grid or []):
            for value in read_values(key, text) if key and equals else []:
                check_names({key: value})
    with quiet():
        from simulations.api.plans import of_sweep
        from simulations.cli.study_view import run_study
        from simulations.studies.sweep import read_grid, sweep_table
    with door():
        plan = of_sweep(config, read_grid({}, grid or []), {})
    if plan.left_out:
        out.print(f"{plan.left_out} cells left out: without smashed data codecs change nothing")
    run_study(
        plan.cells,
        axes=plan.axes,
        conclude=lambda rows, folder: sweep_table(rows, out.width),
        out_dir=out_dir,
        jobs=jobs,
        dry_run=dry_run,
    )


@app.command()
def pareto(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    out_dir: Annotated[str | None, OUT] = None,
    jobs: Annotated[int, JOBS] = 0,
    dry_run: Annotated[bool, DRY] = False,
) -> None:
    r"""Compare codecs at equal rounds, equal bytes and equal client compute.

    The file's [b]\[pareto][/b] table says which codecs, ratios, seeds and budgets; every
    cell runs until all budgets are used up. Cells run as those of a sweep do, and the same
    command with the same [b]--out[/b] goes on with a stopped study; one with larger budgets
    runs again what ended too early. Ends in a table, [b]pareto.csv[/b] and [b]pareto.svg[/b].

    Example: [b]fl-split pareto pareto_digits[/b]
    """
    with door():
        _check_out(out_dir)
        replaced = read_overrides(overrides or [])
        values = {**read_toml(find(config)), **replaced}
        if not isinstance(values.get("pareto"), dict):
            raise ValueError(f"{config} has no [pareto] table")
        check_names({key: value for key, value in values.items() if key != "pareto"})
    with quiet():
        from simulations.api.plans import of_pareto
        from simulations.cli.study_view import run_study
        from simulations.studies.pareto import AXES, conclude
    with door():
        study, found = of_pareto(config, replaced)
    run_study(
        found,
        axes=AXES,
        conclude=lambda rows, folder: conclude(found, study.budgets(), folder),
        out_dir=out_dir,
        jobs=jobs,
        dry_run=dry_run,
    )


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run, a study or a sweep.")],
    once: Annotated[bool, typer.Option("--once", help="Show the present state and end.")] = False,
) -> None:
    """Look at what runs are doing, every second until all have ended.

    Example: [b]fl-split watch runs/20261121-101500[/b]
    """
    with door():
        folder = existing(folder)
    with quiet():
        from simulations.studies.watch import (
            headline,
            is_over,
            look_below,
            remarks,
            snapshot_table,
        )
    with door():
        seen = look_below(folder)
        if not seen:
            raise ValueError(f"no runs in {str(folder)!r}")
    if once or not out.is_terminal:
        out.print(snapshot_table(seen, out.width), headline(seen))
        _print_all(remarks(seen))
        return
    try:
        with Live(console=out, auto_refresh=False) as live:
            while True:
                rows = max(3, out.height - AROUND)
                live.update(
                    Group(snapshot_table(seen, out.width, rows), headline(seen)), refresh=True
                )
                if is_over(seen):
                    break
                time.sleep(INTERVAL)
                seen = look_below(folder)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    _print_all(remarks(seen))


def _print_all(lines: Sequence[str]) -> None:
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _check_out(out_dir: str | None) -> None:
    """Refuse a folder that cannot be made before anything heavy is imported."""
    if out_dir is not None:
        chosen_folder(out_dir)
