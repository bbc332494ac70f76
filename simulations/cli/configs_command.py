"""``fl-split configs``: the configurations that come with fl-split, and copies of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from simulations.cli.terminal import door, out
from simulations.runs.paths import check_place, expanded
from simulations.runs.shipped import find, shipped

app = typer.Typer()

COPY = typer.Option("--copy", metavar="NAME", help="Copy this one, to edit it.")
FOLDER = typer.Argument(help="Where the copy goes.", metavar="[DIR]")


@app.command()
def configs(
    folder: Annotated[Path, FOLDER] = Path(),
    copy: Annotated[str | None, COPY] = None,
) -> None:
    """Show the configurations that come with fl-split, or copy one.

    Their names are known in any folder: [b]fl-split run quickstart[/b].

    Example: [b]fl-split configs --copy quickstart .[/b]
    """
    if copy is None:
        out.print(_table())
        return
    with door():
        source = find(copy)
        folder = expanded(folder)
        check_place(folder)
        target = folder / source.name
        if target.exists():
            raise ValueError(f"{str(target)!r} exists already; give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    out.print("Written:", str(target), markup=False, highlight=False, soft_wrap=True)


def _table() -> Table:
    table = Table(title="Configurations", title_justify="left")
    for column in ("run it with", "what it is"):
        table.add_column(column, overflow="fold")
    for one in shipped():
        table.add_row(f"fl-split {one.command} {one.name}", escape(one.about))
    return table
