"""Commands around studies of many runs: what is trained on, grids, and a look at what runs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.filesize import decimal
from rich.live import Live
from rich.progress import track

from simulations.terminal import chosen_folder, complain, door, err, explain, of, out, quiet

if TYPE_CHECKING:  # importing costs seconds, which --help can do without
    from simulations.crowd import Crowd
    from simulations.setup import Setup
    from simulations.sweep import Cell
    from simulations.watch import Pace, Snapshot

app = typer.Typer()

CONFIG = typer.Argument(help="TOML file; see configs/ for documented examples.", show_default=False)
OUT = typer.Option("--out", help="Folder of all cells. Default: runs/ and the time.")
JOBS = typer.Option(min=0, help="Most runs at once; 0 takes one per core, as memory allows.")
DRY = typer.Option("--dry-run", help="Show the cells and what they will cost; run nothing.")

INTERVAL = 1.0
"""Seconds between two looks at what runs."""

AROUND = 9
"""Lines of a terminal that a table of runs leaves for the rest."""


@app.command()
def partition(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Also write partition.csv and partition.svg here.")
    ] = None,
) -> None:
    """Show who would hold which samples, without training anything.

    Example: [b]fl-split partition configs/quickstart.toml partition="dirichlet(alpha=0.1)"[/b]
    """
    with quiet():
        from simulations import partition_statistics as statistics
        from simulations.experiment import Experiment, read_overrides, read_toml
        from simulations.results import make_folder
        from simulations.setup import prepare_labels
    with door():
        values = {**read_toml(config), **read_overrides(overrides or [])}
        for studies in ("compare", "pareto", "sweep"):
            values.pop(studies, None)
        experiment = Experiment.from_dict(values)
        table, names = prepare_labels(experiment)
        if out_dir:
            make_folder(out_dir)
    counts = statistics.count(table)
    out.print(f"{experiment.dataset}, {experiment.partition}, seed {experiment.seed}", markup=False)
    out.print(statistics.summary_table(counts), statistics.clients_table(counts))
    if out_dir:
        statistics.write(table, out_dir)
        statistics.plot(counts, names, out_dir / statistics.PLOT)
        out.print("Written:", str(out_dir), markup=False, highlight=False, soft_wrap=True)


@app.command()
def sweep(
    config: Annotated[Path, CONFIG],
    grid: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE,VALUE...]...")] = None,
    out_dir: Annotated[Path | None, OUT] = None,
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

    Example: [b]fl-split sweep configs/quickstart.toml strategy=parallel,sflv1 seed=0..2[/b]
    """
    with quiet():
        from simulations.cells import check_others, holds_cells
        from simulations.experiment import read_toml
        from simulations.results import check_empty, check_folder
        from simulations.sweep import cells, read_grid
    with door():
        values = read_toml(config)
        for study in sorted(values.keys() & {"compare", "pareto"}):
            raise ValueError(f"{config} has a table of its own; use: fl-split {study} {config}")
        found_grid = read_grid(values.pop("sweep", {}), grid or [])
        found = cells(values, found_grid)
        folder = chosen_folder({"out": found[0].experiment.out}, out_dir)
        check_folder(folder)
        check_others(folder, found[0].experiment.model_dump(), found_grid)
        if not holds_cells(folder):
            check_empty(folder)
        missing = _missing(found, folder)
        if left_out := math.prod(map(len, found_grid.values())) - len(found):
            out.print(f"{left_out} cells left out: without smashed data codecs change nothing")
        if dry_run:
            _show_cost(found, missing)
            return
        need = _check(missing)
    with door():
        _run_sweep(found, missing, folder, jobs, need)


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run, a study or a sweep.")],
    once: Annotated[bool, typer.Option("--once", help="Show the present state and end.")] = False,
) -> None:
    """Look at what runs are doing, every second until all have ended.

    Example: [b]fl-split watch runs/20261121-101500[/b]
    """
    with quiet():
        from simulations.watch import headline, is_over, look_below, table
    with door():
        seen = look_below(folder)
        if not seen:
            raise ValueError(f"no runs in {str(folder)!r}")
    if once or not out.is_terminal:
        out.print(table(seen, out.width), headline(seen))
        return
    try:
        with Live(console=out, auto_refresh=False) as live:
            while True:
                rows = max(3, out.height - AROUND)
                live.update(Group(table(seen, out.width, rows), headline(seen)), refresh=True)
                if is_over(seen):
                    break
                time.sleep(INTERVAL)
                seen = look_below(folder)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _missing(found: Sequence[Cell], folder: Path) -> list[Cell]:
    """Return the cells that have not finished in an earlier sweep."""
    from simulations.cells import holds_run, is_complete

    paths = {cell.name: folder / cell.name for cell in found}
    return [
        cell
        for cell in found
        if not holds_run(paths[cell.name], cell.experiment.model_dump())
        or not is_complete(paths[cell.name])
    ]


def _tracked(cells: Sequence[Cell], doing: str) -> Iterable[Cell]:
    return track(cells, doing, console=err, transient=True, disable=not err.is_terminal)


def _prepare(cell: Cell) -> Setup:
    from simulations.setup import prepare

    with of(cell.name):
        return prepare(cell.experiment)


def _check(missing: Sequence[Cell]) -> int:
    """Prepare a cell of each combination, without its other seeds; return bytes of memory.

    These are what this process takes with data and model: about what a cell will take.
    """
    from simulations.memory import resident_bytes

    combinations = {
        str({**cell.settings, "seed": None}): cell
        for cell in reversed(missing)  # the first of each stays
    }
    for cell in _tracked([*combinations.values()], "checking"):
        _prepare(cell)
    return resident_bytes(os.getpid())


def _run_sweep(
    found: Sequence[Cell], missing: Sequence[Cell], folder: Path, jobs: int, need: int
) -> None:
    from simulations.crowd import Crowd, alone, uses_cluster
    from simulations.sweep import FILE, frame, table

    if missing and uses_cluster(missing[0]):
        jobs = 1
    crowd = Crowd(missing, folder, jobs or len(os.sched_getaffinity(0)), need)
    waiting = {cell.name for cell in missing}
    crowd.status.update({c.name: "complete" for c in found if c.name not in waiting})
    if done := len(found) - len(missing):
        out.print(f"{done} of {len(found)} cells are finished already")
    explain(cell.experiment for cell in missing)
    with alone(folder):
        try:
            _follow(crowd, found)
        except KeyboardInterrupt:
            err.print("stopping", markup=False)
            crowd.stop()
            advice = f"to go on: the same command, --out {folder}"
            err.print(f"stopped; {advice}", markup=False, soft_wrap=True)
            raise typer.Exit(130) from None
        finally:
            crowd.stop()
            rows = frame(found, folder, crowd.status)
            rows.to_csv(folder / FILE, index=False)
    out.print(table(rows, out.width))
    for name, reason in crowd.failed.items():
        complain(f"{name}: {reason}; its log: {folder / name / 'log.txt'}")
    out.print("Results:", str(folder), markup=False, highlight=False, soft_wrap=True)
    if crowd.failed:
        raise typer.Exit(1)


def _follow(crowd: Crowd, found: Sequence[Cell]) -> None:
    """Run all cells to their ends, in one view; without a terminal a line for each end."""
    from simulations.sweep import FILE, frame
    from simulations.watch import Pace, look

    def look_at(cell: Cell) -> Snapshot:
        return look(crowd.folder / cell.name, cell.name, crowd.status.get(cell.name, "waiting"))

    seen = {cell.name: look_at(cell) for cell in found}
    pace, total = Pace([*seen.values()]), sum(cell.experiment.rounds for cell in found)
    with Live(console=out, auto_refresh=False, transient=True) as live:
        while True:
            before = dict(crowd.status)
            goes_on = crowd.step()
            changed = {n for n, status in crowd.status.items() if status != before.get(n)}
            for cell in found:
                if cell.name in changed or crowd.status.get(cell.name) == "running":
                    seen[cell.name] = look_at(cell)
            if changed:
                frame(found, crowd.folder, crowd.status).to_csv(crowd.folder / FILE, index=False)
            if out.is_terminal:
                live.update(_view([*seen.values()], pace, total), refresh=True)
            else:
                _announce([seen[name] for name in changed])
            if not goes_on:
                return
            time.sleep(INTERVAL)


def _view(seen: Sequence[Snapshot], pace: Pace, total: int) -> Group:
    from simulations.watch import headline, table

    left = pace.seconds_left(seen, total)
    rest = "" if not left else f"; some {timedelta(seconds=round(left))} left"
    return Group(table(seen, out.width, max(3, out.height - AROUND)), headline(seen) + rest)


def _announce(changed: Sequence[Snapshot]) -> None:
    for run in changed:
        accuracy = f", accuracy {100 * run.accuracies[-1]:.1f} %" if run.accuracies else ""
        out.print(f"{run.name}: {run.status}{accuracy}", markup=False, highlight=False)


def _show_cost(found: Sequence[Cell], missing: Sequence[Cell]) -> None:
    """Show what every cell that is still to be run will cost."""
    from simulations.cost import Estimator
    from simulations.sheet import sheet

    estimate, waiting, rows = Estimator(), {cell.name for cell in missing}, []
    start = time.process_time()  # imports: what every cell begins with too
    seconds = start * len(missing)
    for cell in _tracked(missing, "estimating"):
        cost = estimate(_prepare(cell))
        seconds += cost.seconds
        flops = f"{cost.client_flops / 1e12:,.3g}"
        sizes = [decimal(n) for n in (cost.payload_bytes, cost.head_bytes)]
        cpu = f"{timedelta(seconds=round(cost.seconds))}{'*' if cost.is_bound else ''}"
        rows.append([cell.name, f"{cost.steps:,}", *sizes, flops, cpu])
    rows += [[cell.name, "finished", *[""] * 4] for cell in found if cell.name not in waiting]
    titles = ["cell", "steps", "payload", "weights", "client TFLOPs", "CPU"]
    caption = (
        "Payload and weights: both directions, all clients and rounds. CPU: training and "
        "evaluation on one thread, from one timed step, without the start. "
        "*: a budget may end it earlier."
    )
    out.print(sheet(titles, rows, out.width, spare=("steps", "client TFLOPs"), caption=caption))
    cores = len(os.sched_getaffinity(0))
    out.print(
        f"{len(found)} cells, {len(missing)} to run: some {timedelta(seconds=round(seconds))} of "
        f"CPU time, {start:.0f} s of it per start of a run, on {cores} cores"
    )
