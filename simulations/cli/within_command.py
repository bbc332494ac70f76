"""Command `within`: the accuracy of finished runs when all have used up the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.cli.terminal import door, existing, out, quiet
from simulations.runs.paths import expanded

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer()

TABLE, FIGURE = "within.csv", "within.svg"


@app.command()
def within(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of finished runs.")
    ],
    budget: Annotated[
        list[str],
        typer.Option("--budget", "-b", metavar="SPEC", help="What may be spent; may be repeated."),
    ],
    system: Annotated[
        list[str] | None,
        typer.Option("--system", "-s", metavar="SPEC", help="For seconds(...) and joules(...)."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Write table and figure there.")
    ] = None,
) -> None:
    r"""Tell which accuracy finished runs had within equal budgets.

    Nothing is trained: runs have recorded what each round has spent. The accuracy is that after
    the last round that a budget pays in full; runs that differ in their seed are averaged.
    [b]fl-split list budgets[/b] shows all budgets.

    Example: [b]fl-split within runs/a -b "bytes(1e8, of='all')" -b "seconds(600)" -s "wifi()"[/b]
    """
    with door():
        folders = [existing(folder) for folder in folders]
    with quiet():
        from simulations.report.timing import notes
        from simulations.report.within import spendings, within_figure
        from simulations.report.within import within as table
        from simulations.runs.files import make_folder, write_whole, writing
    with door():
        found = spendings(folders, budget, system or [])
        frame = table(found)
        _show(frame)
        for note in notes(one.run for one in found if one.system):
            out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        if output:
            folder = expanded(output)
            make_folder(folder)
            write_whole(folder / TABLE, frame.to_csv(index=False).encode())
            with writing(folder / FIGURE):
                within_figure(found).savefig(folder / FIGURE)
            text = f"Written: {folder / TABLE}, {folder / FIGURE}"
            out.print(text, markup=False, highlight=False, soft_wrap=True)


def _show(frame: pd.DataFrame) -> None:
    """Show a row for each configuration and a column for each budget."""
    from simulations.report.text_table import text_table
    from simulations.report.within import percent

    limits = dict.fromkeys(zip(frame["budget"], frame["system"], strict=True))
    letters = [chr(ord("A") + number) for number in range(len(limits))]
    for letter, (budget, system) in zip(letters, limits, strict=True):
        text = f"{letter}: {budget}{system and f' under {system}'}"
        out.print(text, markup=False, highlight=False, soft_wrap=True)
    numbers = ["accuracy", "spread", "reached"]
    rows = [
        [str(run), *(percent(*row) for row in part[numbers].itertuples(index=False))]
        for run, part in frame.groupby("run", sort=False)
    ]
    caption = (
        "Accuracy, %, mean ± standard deviation over seeds. *: a run ended with budget left. "
        "-: not one round is within it."
    )
    out.print(text_table(["run", *letters], rows, out.width, caption=caption))
