"""Tables on a terminal of any width: long names are cut in their middle, spare columns left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

LEAST, ENOUGH = 8, 40
"""Characters of a name that are always shown; and for which columns are left out."""


@dataclass(frozen=True)
class Name:
    """Text that is cut in its middle where there is no room: names differ at their ends."""

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Ask rich for the width of the whole text, and accept less."""
        return Measurement(min(LEAST, cell_len(self.text)), cell_len(self.text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Fill one line."""
        yield Text(shortened(self.text, options.max_width), no_wrap=True)


def shortened(text: str, width: int) -> str:
    """Cut `text` in its middle to at most `width` characters."""
    if len(text) <= width:
        return text
    after = max(0, width - 1) // 2
    return f"{text[: max(0, width - 1 - after)]}…{text[len(text) - after :]}"


def shortened_apart(texts: Sequence[str], width: int) -> list[str]:
    """Cut all texts in their middle; cut none if two different ones would become equal."""
    cut = [shortened(text, width) for text in texts]
    return cut if len({*cut}) == len({*texts}) else list(texts)


def text_table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    spare: Sequence[str] = (),
    left: Collection[str] = (),
    **options: Any,
) -> Table:
    """Lay out rows of plain text, whose first cell is a name, for so many characters.

    Columns of the titles in `spare` are left out, in this order, while names have no room;
    those in `left` begin on the left. `options` are rich's of a table.
    """
    gone: set[str] = set()
    for title in spare:
        if _width(titles, rows, gone) > width:
            gone.add(title)
    kept = [place for place, title in enumerate(titles) if title not in gone]
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), **options)
    table.add_column(titles[0])
    for place in kept[1:]:
        is_left = titles[place] in left
        table.add_column(titles[place], justify="left" if is_left else "right", no_wrap=True)
    for row in rows:
        cells = [Text(row[place]) for place in kept[1:]]
        table.add_row(Name(row[0]), *cells)
    return table


def _width(titles: Sequence[str], rows: Sequence[Sequence[str]], gone: Collection[str]) -> int:
    """Characters of a line, edges and gaps included, with names of a good length."""
    widths = {title: max(map(cell_len, column)) for title, *column in _columns(titles, rows)}
    widths[titles[0]] = min(ENOUGH, widths[titles[0]])
    kept = [width + 2 for title, width in widths.items() if title not in gone]
    return sum(kept) + 1


def _columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Turn titles and rows into columns, each a title, itself and its cells."""
    return [(title, title, *(row[i] for row in rows)) for i, title in enumerate(titles)]
