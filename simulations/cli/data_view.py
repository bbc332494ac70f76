"""Data on a terminal: a bar while many images are read, a block of what was decided about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # importing costs seconds, which --help can do without
    from simulations.data.cache import Progress as Told
    from simulations.data.splits import Decision


@contextmanager
def counting(console: Console) -> Iterator[Told]:
    """Show a bar while many images are looked at or decoded; yield what is told of it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def told(text: str, done: int, total: int) -> None:
            if text not in tasks:
                tasks[text] = bars.add_task(text, total=total)
            bars.update(tasks[text], completed=done, total=total)

        yield told


def decided(decisions: Sequence[Decision]) -> Table:
    """Return a block of what was decided about data: what about, what, and what decides it."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(style="dim", overflow="fold")
    for one in decisions:
        style = "yellow" if one.is_warning else ""
        table.add_row(one.about, Text(one.text, style), Text(one.key))
    return table
