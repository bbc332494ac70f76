"""Commands about data: what the program would take of them, and the cache of decoded images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from simulations.cli.data_view import counting, decided
from simulations.cli.terminal import OVERRIDES, door, err, out, quiet
from simulations.runs.misspelt import check_names
from simulations.runs.settings import keys_of_data, read_overrides

app = typer.Typer()

MOST_CLASSES = 30
"""Classes that are shown on a terminal."""


@app.command()
def data(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC", help="A data set: [b]\"local(path='photos')\"[/b]; or a TOML file."
        ),
    ],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", "-o", help="Draw ten training images as they are trained on."),
    ] = None,
) -> None:
    r"""Show what would be trained on: splits, columns, classes, sizes, what is left out.

    Nothing is trained. Look at data before you believe a number.

    Example: [b]fl-split data "local(path='photos')" image_size=64 -o photos.png[/b]
    """
    with door():
        values = {**keys_of_data(spec), **read_overrides(overrides or [])}
        check_names(values)
    with quiet():
        from simulations.data import showing
        from simulations.runs.experiment import Experiment
        from simulations.runs.experiment_data import view
    with door(), counting(err) as told:
        seen = view(Experiment.from_dict(values), told, decodes=True)
    out.print(f"{values.get('dataset', 'digits()')}", markup=False, highlight=False)
    out.print(decided(seen.decisions))
    out.print(_classes(showing.classes(seen.looked.source)))
    if pictures:
        with door():
            showing.draw(seen, pictures)
        out.print("Pictures:", str(pictures), markup=False, highlight=False, soft_wrap=True)
    else:
        out.print("-o pictures.png draws ten of the images as they are trained on.")


def _classes(rows: list[tuple[str, int, int]]) -> Table:
    """Show how many images each class has."""
    table = Table("class", box=SIMPLE)
    for title in ("training images", "test images"):
        table.add_column(title, justify="right")
    for name, train, test in rows[:MOST_CLASSES]:
        table.add_row(Text(name), f"{train:,}", f"{test:,}")
    if len(rows) > MOST_CLASSES:
        table.add_row(f"and {len(rows) - MOST_CLASSES:,} more", "", "")
    table.add_section()
    train, test = sum(row[1] for row in rows), sum(row[2] for row in rows)
    table.add_row(f"{len(rows):,} classes", f"{train:,}", f"{test:,}")
    return table


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False,
) -> None:
    """Show the cache of decoded images and unpacked archives on disk, or clear it.

    FL_SPLIT_CACHE names its folder; the key cache_gb limits it.
    """
    from simulations.data import cache as images

    with door():
        if clear:
            freed = images.clear() / images.GB
            out.print(f"{freed:.3g} GB freed in {images.folder()}", markup=False, soft_wrap=True)
            return
        table = Table("data set", "images", "GB", "how they were decoded", box=SIMPLE)
        entries = images.entries()
        for entry in entries:
            cells = f"{entry.shape[0]:,}", f"{entry.bytes / images.GB:.3g}", entry.transform
            table.add_row(Text(entry.name), *map(Text, cells))
        if entries:
            out.print(table)
        total, unpacked = (images.size_of(part) for part in (images.IMAGES, images.ARCHIVES))
        text = f"{len(entries)} entries, {total / images.GB:.3g} GB"
        text += f", and {unpacked / images.GB:.3g} GB of unpacked archives" if unpacked else ""
        text += f" in {images.folder()}"
        out.print(text, markup=False, highlight=False, soft_wrap=True)
