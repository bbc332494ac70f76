"""The style of figures; a finished figure is SVG text and the numbers that it draws."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from simulations.report.labels import TASK, joined
from simulations.report.runs import Configuration
from simulations.report.text_table import shortened_apart

INK, PAPER = "#010203", "#fdfefd"
"""Stand for the text and the page that a figure meets: a page may be light or dark."""

COLOURS = (INK, "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, safe for colour-blind readers, but for yellow, which paper swallows."""

DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^vP*Xhd<>8"

LOOK = {
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

MOST_LINES = 8
"""In one panel, where configurations can be spread over several."""


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
    """

    name: str
    title: str
    caption: str
    alt: str
    inline: str
    file: str
    data: pd.DataFrame
    width: float

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
    figure: Figure, name: str, title: str, caption: str, alt: str, data: pd.DataFrame
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
        inline=svg.replace(INK, "currentColor").replace(PAPER, "none"),
        file=text.replace(INK, "#222222").replace(PAPER, "#ffffff"),
        data=data,
        width=figure.get_figwidth(),
    )  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """Some configurations in one plot; a line is named by what the title leaves out."""

    split: tuple[str, ...]
    lines: Sequence[tuple[str, Configuration]]

    @property
    def title(self) -> str:
        """What the configurations of this panel have in common."""
        return joined(self.lines[0][1].differing, self.split)


def panels(configurations: Sequence[Configuration], most: int = MOST_LINES) -> list[Panel]:
    """Spread configurations over panels: by task, and by another key if lines are over `most`."""
    keys = list(configurations[0].told)
    split = [key for key in keys if key in TASK]
    if len(split) == len(keys):
        split = split[:-1]  # tasks alone differ: the last key makes the lines
    if _most(configurations, split) > most:
        shares = {key: _most(configurations, [*split, key]) for key in keys if key not in split}
        good = [key for key, share in shares.items() if 1 < share <= most]
        split += sorted(good, key=lambda key: -shares[key])[:1]
    found: dict[tuple[str, ...], list[tuple[str, Configuration]]] = {}
    for one in configurations:
        rest = [key for key in keys if key not in split]
        where = tuple(one.differing[key] for key in split)
        found.setdefault(where, []).append((joined(one.differing, rest), one))
    return [Panel(tuple(split), lines) for lines in found.values()]


def _most(configurations: Sequence[Configuration], split: Sequence[str]) -> int:
    """Lines in the fullest panel."""
    return max(Counter(tuple(c.differing[key] for key in split) for c in configurations).values())


def grid(found: Sequence[Panel], x: str, y: str) -> tuple[Figure, list[Any]]:
    """Return a figure of these panels, with room for a legend below, and its axes."""
    count, labels = len(found), {label for panel in found for label, _ in panel.lines}
    columns = _columns(found)
    rows = -(-count // columns)
    width = 4.8 if columns == 1 else 3.2 * columns
    height = 3.6 if columns == 1 and len(labels) > MOST_LINES else 2.7
    names = named(labels)
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


def _columns(found: Sequence[Panel]) -> int:
    """One for each value of the last key, if that leaves no gaps; else some."""
    split, count = found[0].split, len(found)
    if len(split) > 1:
        values = {panel.lines[0][1].differing[split[-1]] for panel in found}
        if 1 < len(values) < 5 and count % len(values) == 0:
            return len(values)
    return 1 if count == 1 else 2 if count in {2, 4} else 3


def named(labels: Iterable[str], width: int = 58) -> list[str]:
    """Break labels into two lines at most; they are cut in the middle if all still differ."""
    shown = shortened_apart([*labels], 2 * width - 10)
    return ["\n".join(wrap(label, width)) for label in shown]


def legend_columns(width: float, names: Iterable[str]) -> int:
    """Return how many names fit beside each other in a figure `width` inches wide."""
    longest = max(len(line) for name in names for line in name.split("\n"))
    return max(1, int(width / (0.6 + 0.07 * longest)))


def marks(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of a line; 7 colours and 13 markers make 91 pairs."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }
