"""The style of figures; a finished figure is SVG text and the numbers that it draws."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from simulations.report.canvas import PLAIN
from simulations.report.marks import INK, PAPER
from simulations.report.panels import MOST_LINES, Panel, columns_of
from simulations.report.text_table import shortened_apart

LOOK = {
    **PLAIN,
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PAPER,
    "grid.alpha": 0.2,
    "grid.color": INK,
    "legend.frameon": False,
    "xtick.color": INK,
    "ytick.color": INK,
}

PATH, LONG = re.compile(r' d="[^"]*"'), re.compile(r"(\.\d\d)\d+")
"""Coordinates, and decimals beyond what can be seen."""


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes
    ----------
    name : str
        For file names.
    alt : str
        Description for readers who cannot see the figure.
    inline, file : str
        SVG in the colours of the page around it, and on white, for a file.
    data : DataFrame
        The numbers drawn.
    width : float
        Of the figure, in inches.
    plot : str
        The same figure as JSON for Plotly, to be played with.
    axes : str
        Those that may be logarithmic, `x` and `y`.
    """

    name: str
    title: str
    caption: str
    alt: str
    inline: str
    file: str
    data: pd.DataFrame
    width: float
    plot: str
    axes: str

    @property
    def is_wide(self) -> bool:
        """Whether the figure needs more than one column of the page."""
        return self.width > 6


@contextmanager
def our_style(name: str) -> Iterator[None]:
    """Draw in our style, whatever the user's is; ids within the SVG depend on `name` only."""
    with style.context(["default", {**LOOK, "svg.hashsalt": name}]):
        yield


def drawn(
    figure: Figure,
    name: str,
    title: str,
    caption: str,
    alt: str,
    data: pd.DataFrame,
    plot: str,
    axes: str = "",
) -> Drawing:
    """Turn a figure into text; call it within :func:`our_style`."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = PATH.sub(lambda path: LONG.sub(r"\1", path.group()), buffer.getvalue())
    svg = text[text.index("<svg") :]
    for mark in ('id="', "url(#", 'href="#'):  # several figures share one page
        svg = svg.replace(mark, f"{mark}{name}-")
    return Drawing(
        name, title, caption, alt,
        inline=svg.replace(INK, "currentColor").replace(PAPER, "var(--page, none)"),
        file=text.replace(INK, "#222222").replace(PAPER, "#ffffff"),
        data=data,
        width=figure.get_figwidth(),
        plot=plot,
        axes=axes,
    )  # fmt: skip


def grid(
    found: Sequence[Panel], x: str, y: str, entries: Iterable[str]
) -> tuple[Figure, list[Any]]:
    """Return a figure of these panels, with room for a legend below, and its axes."""
    count, names = len(found), named(entries)
    columns = columns_of(found)
    rows = -(-count // columns)
    width = 4.8 if columns == 1 else 3.2 * columns
    height = 3.6 if columns == 1 and len(names) > MOST_LINES else 2.7
    legend = 0.16 * sum(1 + name.count("\n") for name in names) / legend_columns(width, names)
    figure = Figure(figsize=(width, height * rows + legend + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False)
    for axis in axes[:, 0]:
        axis.set_ylabel(y)
    for number, axis in enumerate(axes.flat):
        axis.set_visible(number < count)
        if number + columns >= count:  # nothing below it
            axis.set_xlabel(x)
            axis.tick_params(labelbottom=True)
    titles = named([panel.title for panel in found], 42)
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title)
    return figure, list(axes.flat)[:count]


def named(labels: Iterable[str], width: int = 58) -> list[str]:
    """Break labels into two lines at most; they are cut in the middle if all still differ."""
    shown = shortened_apart([*labels], 2 * width - 10)
    return ["\n".join(wrap(label, width)) for label in shown]


def legend_columns(width: float, names: Iterable[str]) -> int:
    """Return how many names fit beside each other in a figure `width` inches wide."""
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    return max(1, int(width / (0.6 + 0.07 * longest)))
