"""Frontiers of split inference, and where images left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from simulations.report.marks import COLOURS, INK, NEUTRAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LETTERS = 20
"""Of a place whose name is not turned upright."""

POINTS = {"all sent": "s", "all local": "o", "oracle": "*"}


def draw(
    table: pd.DataFrame,
    frontiers: Mapping[str, pd.DataFrame],
    histograms: Mapping[str, Mapping[str, int]],
) -> Figure:
    """Draw accuracy against bytes and device operations, and a histogram of exits."""
    from matplotlib import rc_context

    from simulations.report.canvas import PLAIN, Canvas, named_legend
    from simulations.report.figures import named

    places = list(dict.fromkeys(place for one in histograms.values() for place in one))
    names = named(places, 36)
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    height = 3.8 + 0.06 * len(frontiers) + 0.06 * max(0, longest - MOST_LETTERS)
    figure = Canvas(figsize=(12, height), layout="constrained")
    with rc_context(PLAIN):
        by_bytes, by_flops, exits = figure.subplots(1, 3)
        for axis, key, name in (
            (by_bytes, "bytes_up", "payload of an image, bytes"),
            (by_flops, "device_flops", "operations of the device on an image"),
        ):
            _frontier(axis, key, table, frontiers)
            axis.set_xlabel(name)
            axis.set_ylabel("accuracy")
        _histogram(exits, places, histograms)
        exits.set_xticks(range(len(places)), names, fontsize=8,
                         rotation=90 if longest > MOST_LETTERS else 20)  # fmt: skip
        handles, labels = by_bytes.get_legend_handles_labels()
        place = {"loc": "outside lower center", "ncols": 4}
        named_legend(figure, handles, named(labels, 40), fontsize=7, **place)
    return figure


def _frontier(
    axis: Any, key: str, table: pd.DataFrame, frontiers: Mapping[str, pd.DataFrame]
) -> None:
    for (name, frame), colour in zip(frontiers.items(), np.resize(COLOURS[1:], 99), strict=False):
        ordered = frame.sort_values(key)
        axis.plot(ordered[key], ordered["accuracy"], marker=".", color=colour, label=name)
    known = table.set_index("policy")
    for name, marker in POINTS.items():
        if name in known.index:
            row = known.loc[name]
            axis.plot(row[key], row["accuracy"], marker, color=INK, label=name)
    if {"all local", "all sent"} <= {*known.index}:
        ends = known.loc[["all local", "all sent"]]
        axis.plot(ends[key], ends["accuracy"], ":", color=NEUTRAL, label="random mixture")
    if key == "bytes_up":
        for form in ("JPEG", "WEBP"):
            rows = known[[str(name).startswith(form) for name in known.index]]
            axis.plot(rows[key], rows["accuracy"], "--", color=NEUTRAL, label=form, alpha=0.6)


def _histogram(
    axis: Any, places: Sequence[str], histograms: Mapping[str, Mapping[str, int]]
) -> None:
    width = 0.8 / max(1, len(histograms))
    for number, (name, counts) in enumerate(histograms.items()):
        left = np.arange(len(places)) + number * width
        colour = COLOURS[1 + number % (len(COLOURS) - 1)]
        axis.bar(left, [counts.get(p, 0) for p in places], width, color=colour, label=name)
    axis.set_ylabel("images")
