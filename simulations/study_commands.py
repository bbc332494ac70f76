"""Commands around studies of many runs: what is trained on, grids, and a look at what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.terminal import door, out, quiet

app = typer.Typer()

CONFIG = typer.Argument(help="TOML file; see configs/ for documented examples.", show_default=False)


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
