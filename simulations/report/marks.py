"""Who looks how: the one place that gives colours, markers and dashes, to every figure.

A configuration has one mark on a page. Up to seven methods differ in colour and marker. Of more,
those of one family (a codec at several ratios) share the colour and differ in marker and dashes.
Where a key of the method parts panels, lines of equal colour differ in the marker of that key.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulations.report.labels import TASK, families, joined
from simulations.report.panels import split_keys
from simulations.report.runs import Configuration

INK, PAPER = "#010203", "#fdfefd"
"""Stand for the text and the page that a figure meets: a page may be light or dark."""

NEUTRAL = "#888888"

LEFT_OUT = "#e69f00"
"""Of what is missing in a gray picture."""

COLOURS = (INK, "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, safe for colour-blind readers, but for yellow, which paper swallows."""

SYMBOLS = {
    "o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down",
    "P": "cross", "*": "star", "X": "x", "p": "pentagon", "d": "diamond-tall",
    "<": "triangle-left", ">": "triangle-right", "h": "hexagon",
}  # fmt: skip
"""Matplotlib's markers, and what Plotly calls them."""

SHAPES = [(marker, filled) for filled in (True, False) for marker in SYMBOLS]

DASHES: tuple[tuple[float, ...], ...] = (
    (), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (9, 3), (3, 1, 1, 1, 1, 1),
)  # fmt: skip
"""Lengths of strokes and gaps, in widths of the line."""


@dataclass(frozen=True)
class Mark:
    """How a line and its points look; places in the lists of this module, None for neutral."""

    colour: int | None
    shape: int | None = None
    dash: int | None = 0

    @property
    def paint(self) -> str:
        """The colour, as #rrggbb."""
        return NEUTRAL if self.colour is None else COLOURS[self.colour]

    def matplotlib(self) -> dict[str, Any]:
        """Arguments of matplotlib's `plot`."""
        style: dict[str, Any] = {"color": self.paint}
        if self.dash is not None:
            style["linestyle"] = (0, DASHES[self.dash]) if DASHES[self.dash] else "-"
        if self.shape is not None:
            style["marker"], filled = SHAPES[self.shape]
            style |= {"markeredgecolor": self.paint}
            style |= {"markerfacecolor": self.paint if filled else PAPER}
        return style

    def plotly(self, width: float = 2) -> dict[str, Any]:
        """Return `line` and `marker` of a Plotly trace `width` pixels wide."""
        pixels = [f"{max(2.0, width * length):g}px" for length in DASHES[self.dash or 0]]
        line = {"color": self.paint, "width": width, "dash": ",".join(pixels) or "solid"}
        if self.shape is None:
            return {"line": line}
        marker, filled = SHAPES[self.shape]
        edge = {"color": self.paint, "width": 1.5}
        face = self.paint if filled else PAPER
        return {
            "line": line,
            "marker": {"symbol": SYMBOLS[marker], "size": 8, "color": face, "line": edge},
        }


def shared(marks: Iterable[Mark]) -> Mark:
    """Return what marks have in common: the mark of a legend's entry for all of them."""
    colours, shapes, dashes = (
        {*part} for part in zip(*((m.colour, m.shape, m.dash) for m in marks), strict=True)
    )
    return Mark(*(part.pop() if len(part) == 1 else None for part in (colours, shapes, dashes)))


def in_a_row(names: Sequence[str], kept: Mapping[str, Mark] | None = None) -> dict[str, Mark]:
    """Give each name its own mark; names in `kept` keep theirs."""
    return _assigned([(name, "") for name in dict.fromkeys(names)], kept or {})


@dataclass(frozen=True)
class Marks:
    """The marks of a page.

    Attributes
    ----------
    split : tuple[str, ...]
        Keys that part the panels of curves.
    table : Mapping[str, Mark]
        By what a line is called there, and by which method its panel is.
    """

    split: tuple[str, ...]
    table: Mapping[str, Mark]

    @classmethod
    def of(
        cls, configurations: Sequence[Configuration], kept: Mapping[str, Mark] | None = None
    ) -> Marks:
        """Choose marks; a method that an older page had, in `kept`, looks as it did there."""
        split = tuple(split_keys(configurations))
        pairs = list(dict.fromkeys(_pair(one, split) for one in configurations))
        return cls(split, _assigned(pairs, kept or {}))

    def to_json(self) -> str:
        """Return what :func:`kept_marks` reads."""
        table = {key: dataclasses.astuple(mark) for key, mark in self.table.items()}
        return json.dumps(table).replace("<", "\\u003c")

    def __getitem__(self, one: Configuration) -> Mark:
        """Return the mark of a configuration."""
        return self.table[_key(_pair(one, self.split))]


def kept_marks(page: str) -> dict[str, Mark]:
    """Return the marks of an older page; none where it has none."""
    found = re.search(r'<script type="application/json" id="marks">(.*?)</script>', page)
    try:
        return {key: Mark(*mark) for key, mark in json.loads(found[1]).items()} if found else {}
    except (ValueError, TypeError):
        return {}


def _pair(one: Configuration, split: Sequence[str]) -> tuple[str, str]:
    """Name the line, and the method that its panel stands for."""
    rest = [key for key in one.told if key not in split]
    return joined(one.differing, rest), joined(
        one.differing, [key for key in split if key not in TASK]
    )


def _key(pair: tuple[str, str]) -> str:
    return " | ".join(part for part in pair if part)


def _assigned(pairs: Sequence[tuple[str, str]], kept: Mapping[str, Mark]) -> dict[str, Mark]:
    """Give marks to pairs of line and panel, no two the same while there are enough."""
    lines, rows = (list(dict.fromkeys(column)) for column in zip(*pairs, strict=True))
    group, colours, places = _colours(lines)
    most = 1 + max(places.values())
    found = {_key(pair): kept[_key(pair)] for pair in pairs if _key(pair) in kept}
    by_group = {
        group[line]: found[_key((line, r))] for line, r in pairs if _key((line, r)) in found
    }
    for line, row in pairs:
        used = Counter(mark.colour for mark in found.values())
        if group[line] in by_group:
            colour = by_group[group[line]].colour or 0
        elif by_group and used[colours[line]]:
            colour = min(range(len(COLOURS)), key=lambda colour: used[colour])
        else:
            colour = colours[line]
        first = rows.index(row) * most + places[line]
        steps = range(first, first + len(SHAPES))
        wishes = [_mark(colour, step, len(rows) == 1) for step in steps]
        taken = {*found.values()}
        free = next((mark for mark in wishes if mark not in taken), wishes[0])
        found.setdefault(_key((line, row)), free)
    return found


def _mark(colour: int, step: int, varies: bool) -> Mark:
    """Return the mark of a colour's `step`-th line; markers vary with colours too if asked."""
    shape = step + (colour if varies else 0)
    return Mark(colour, shape % len(SHAPES), step % len(DASHES))


def _colours(lines: Sequence[str]) -> tuple[dict[str, str], dict[str, int], dict[str, int]]:
    """Return of every line whom it shares its colour with, the colour, and its place therein."""
    group = families(lines) if len(lines) > len(COLOURS) else {line: line for line in lines}
    if len({*group.values()}) == 1:
        group = {line: line for line in lines}
    names = list(dict.fromkeys(group.values()))
    colours = {line: names.index(group[line]) % len(COLOURS) for line in lines}
    count: Counter[int] = Counter()
    places = {}
    for line in lines:
        places[line] = count[colours[line]]
        count[colours[line]] += 1
    return group, colours, places
