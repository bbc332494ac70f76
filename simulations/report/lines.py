"""Figures of lines, drawn by matplotlib; Plotly's are in plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from simulations.report.canvas import named_legend
from simulations.report.chart import ACCURACY, Chart, Line, hidden
from simulations.report.figures import Drawing, drawn, grid, legend_columns, named, our_style
from simulations.report.marks import NEUTRAL, Mark
from simulations.report.plots import chart_plot


def drawing(chart: Chart) -> Drawing:
    """Draw a chart in both ways."""
    with our_style(chart.name):
        figure, axes = grid(chart.panels, chart.x, ACCURACY, chart.entries)
        for number, axis in enumerate(axes):
            lines = [line for line in chart.lines if line.panel == number]
            below = hidden([line.frame for line in lines])
            for place, line in enumerate(lines):
                _draw(axis, line, len(lines), place, below[place])
            if chart.ticks:
                turn = 30 if max(map(len, chart.ticks.values())) > 6 else 0
                axis.set_xticks([*chart.ticks], [*chart.ticks.values()], rotation=turn)
        if chart.x == "round":
            axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        if chart.is_log:
            logarithmic(axes)
        names = named(chart.entries)
        handles = [Line2D([], [], ms=4, lw=1.3, **m.matplotlib()) for m in chart.entries.values()]
        named_legend(
            figure, handles, names, loc="outside lower left", fontsize="small",
            ncols=legend_columns(figure.get_figwidth(), names),
        )  # fmt: skip
        plot = chart_plot(chart)
        title, told = chart.title, (chart.caption, chart.alt, chart.data)
        return drawn(figure, chart.name, title, *told, plot, "y" if chart.ticks else "xy")


def plot_curve(
    axis: Any, frame: pd.DataFrame, mark: Mark, place: int, below: int, **more: Any
) -> None:
    """Draw columns `x` and `mean`; markers of neighbours stand at different points."""
    every = max(1, len(frame) // 6)
    start = place % every
    width = 1.3 + 2.5 * below
    style = mark.matplotlib() | {"markevery": (start, every), "lw": width, "ms": 4 + 2.5 * below}
    axis.plot(frame["x"], frame["mean"], alpha=0.5 if below else 1, **style, **more)


def _draw(axis: Any, line: Line, count: int, place: int, below: int) -> None:
    frame = line.frame
    if line.kind == "front":
        axis.plot(frame["x"], frame["mean"], color=NEUTRAL, lw=4, alpha=0.4, zorder=1)
    elif line.kind == "join":
        axis.plot(frame["x"], frame["mean"], color=line.mark.paint, lw=0.8, zorder=1.5)
    elif line.kind == "bars":
        errors = [frame["mean"] - frame["least"], frame["greatest"] - frame["mean"]]
        axis.errorbar(
            frame["x"], frame["mean"], yerr=errors, capsize=2, ms=5, lw=1.3, elinewidth=0.8,
            **line.mark.matplotlib(),
        )  # fmt: skip
    else:
        plot_curve(axis, frame, line.mark, place, below)
        if (frame["seeds"] > 1).any():
            alpha = 0.15 if count < 5 else 0.07
            low, high = frame["least"], frame["greatest"]
            axis.fill_between(frame["x"], low, high, color=line.mark.paint, alpha=alpha, lw=0)


def logarithmic(axes: Sequence[Any]) -> None:
    """Make x axes logarithmic, with plain numbers."""
    for axis in axes:
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.xaxis.set_minor_formatter(lambda value, _: "")
