"""Frontiers of split inference, and where images left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from simulations.report.marks import COLOURS, INK, NEUTRAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = {"all sent": "s", "all local": "o", "oracle": "*"}


def draw(
    table: pd.DataFrame,
    frontiers: Mapping[str, pd.DataFrame],
    histograms: Mapping[str, Mapping[str, int]],
) -> Figure:
    """Draw accuracy against bytes and device operations, and a histogram of exits."""
    from matplotlib import rc_context

    from simulations.report.canvas import PLAIN, Canvas

    figure = Canvas(figsize=(12, 3.8), layout="constrained")
    with rc_context(PLAIN):
        by_bytes, by_flops, exits = figure.subplots(1, 3)
        for axis, key, name in (
            (by_bytes, "bytes_up", "payload of an image, bytes"),
            (by_flops, "device_flops", "operations of the device on an image"),
        ):
            _frontier(axis, key, table, frontiers)
            axis.set_xlabel(name)
            axis.set_ylabel("accuracy")
        _histogram(exits, histograms)
        by_bytes.legend(fontsize=7)
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


def _histogram(axis: Any, histograms: Mapping[str, Mapping[str, int]]) -> None:
    places = list(dict.fromkeys(place for one in histograms.values() for place in one))
    width = 0.8 / max(1, len(histograms))
    for number, (name, counts) in enumerate(histograms.items()):
        left = np.arange(len(places)) + number * width
        colour = COLOURS[1 + number % (len(COLOURS) - 1)]
        axis.bar(left, [counts.get(p, 0) for p in places], width, color=colour, label=name)
    axis.set_xticks(np.arange(len(places)), places, rotation=20, fontsize=8)
    axis.set_ylabel("images")
