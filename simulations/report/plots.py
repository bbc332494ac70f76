"""Figures that readers play with, as JSON for Plotly.

Plotly (MIT; a 9.7 MB wheel that holds its JavaScript) draws SVG, which a page's style reaches,
hides lines by its legend and changes the scale of an axis in one call. Bokeh (BSD, a third of the
size) draws pixels, and its axes keep their scale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from simulations.report.chart import ACCURACY, Chart, Line, hidden
from simulations.report.figures import named
from simulations.report.marks import COLOURS, INK, LEFT_OUT, NEUTRAL, PAPER
from simulations.report.panels import columns_of

ROW, LEGEND, LETTER = 260, 22, 6.6
"""Pixels: a row of panels, a row of the legend, a letter in it."""

MOST_MARKERS = 8
"""Of a curve; its other points show their values too."""

GRID = "rgba(128,128,128,0.25)"


def chart_plot(chart: Chart) -> str:
    """Return a figure of lines: every point shows its values, every entry of the legend hides."""
    columns = columns_of(chart.panels)
    rows = -(-len(chart.panels) // columns)
    titles = [_text(name) for name in named([panel.title for panel in chart.panels], 42)]
    figure = make_subplots(
        rows, columns, shared_xaxes="all", shared_yaxes="all", subplot_titles=titles,
        horizontal_spacing=0.03, vertical_spacing=min(0.12, 0.3 / rows),
    )  # fmt: skip
    where = {n: (n // columns + 1, n % columns + 1) for n in range(len(chart.panels))}
    for entry, mark in chart.entries.items():
        group: dict[str, Any] = {"name": _text(entry), "legendgroup": entry}
        mode = "lines" if mark.shape is None else "lines+markers"
        figure.add_scatter(x=[None], y=[None], mode=mode, **group, **mark.plotly())
    for number, (row, column) in where.items():
        lines = [line for line in chart.lines if line.panel == number]
        for line, below in zip(lines, hidden([line.frame for line in lines]), strict=True):
            for trace in _traces(line, chart, below):
                figure.add_trace(trace, row, column)
    _axes(figure, chart, where, rows)
    longest = max((len(entry) for entry in chart.entries), default=0)
    meta = {"entries": len(chart.entries), "entry": 60 + LETTER * min(longest, 60)}
    meta["row"] = LEGEND
    above = 55 if any(titles) else 30  # panels' titles stand below Plotly's buttons
    return _finished(figure, ROW * rows + above + 60, meta, above)


def heat_plot(table: pd.DataFrame, axes: Sequence[str]) -> str:
    """Return a heat map of a table; `axes` name columns, rows and values."""
    columns, rows, values = axes
    cells = table.to_numpy(dtype=float).round(3)
    figure = go.Figure()
    figure.add_heatmap(
        z=[[None if np.isnan(cell) else cell for cell in row] for row in cells.tolist()],
        x=[_text(str(name)) for name in table.columns],
        y=[_text(name) for name in named(map(str, table.index), 30)],
        zmin=0, zmax=float(np.nanmax(cells, initial=1e-9)), colorscale="Cividis", hoverongaps=False,
        colorbar={"title": values, "thickness": 12},
        hovertemplate=f"{columns} %{{x}}<br>{rows} %{{y}}<br>{values}: %{{z}}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title=columns, type="category", showgrid=False)
    figure.update_yaxes(title=rows, type="category", autorange="reversed", showgrid=False)
    return _finished(figure, 130 + min(900, 22 * max(6, len(table))), {})


def picture_plot(cells: NDArray[np.float64], rows: Sequence[str]) -> str:
    """Return a gray picture (H, W) of 0 to 1; -1 is what is left out. `rows` name strips."""
    height, width = cells.shape
    colours = [[0, LEFT_OUT], [0.49, LEFT_OUT], [0.5, "#000000"], [1, "#ffffff"]]
    figure = go.Figure()
    figure.add_heatmap(
        z=[[None if np.isnan(cell) else cell for cell in row] for row in cells.round(3).tolist()],
        zmin=-1, zmax=1, colorscale=colours, showscale=False, hoverinfo="skip",
    )  # fmt: skip
    step = height / len(rows)
    places = [step * (place + 0.5) for place in range(len(rows))]
    figure.update_xaxes(visible=False)
    figure.update_yaxes(tickvals=places, ticktext=[*rows], autorange="reversed", showgrid=False)
    return _finished(figure, 60 + int(640 * height / width), {})


def lines_plot(
    lines: Mapping[str, pd.DataFrame], columns: tuple[str, str], axes: Sequence[str]
) -> str:
    """Return lines by name through points in two columns of a table."""
    figure = go.Figure()
    for number, (name, frame) in enumerate(lines.items()):
        x, y = ([*frame[column]] for column in columns)
        colour = COLOURS[number % len(COLOURS)]
        figure.add_scatter(
            x=x, y=y, mode="lines+markers", name=_text(name), line={"color": colour},
            text=[_text(policy) for policy in frame["policy"]],
            hovertemplate="%{text}<br>%{x:,.0f} bytes: %{y:.1f} %",
        )  # fmt: skip
    figure.update_xaxes(title=axes[0])
    figure.update_yaxes(title=axes[1])
    longest = max(map(len, lines))
    meta = {"entries": len(lines), "entry": 60 + LETTER * min(longest, 60), "row": LEGEND}
    return _finished(figure, 360, meta)


def boxes_plot(data: pd.DataFrame, axis: str) -> str:
    """Return lying boxes from quantiles, with dots for the least and the greatest."""
    names = [_text(name) for name in named(data["configuration"], 30)]
    figure = go.Figure()
    figure.add_box(
        y=names, q1=[*data["25 %"]], median=[*data["median"]], q3=[*data["75 %"]],
        lowerfence=[*data["10 %"]], upperfence=[*data["90 %"]], mean=[*data["mean"]],
        orientation="h", fillcolor=COLOURS[-1], line={"color": INK, "width": 1}, name="",
    )  # fmt: skip
    for key in ("least", "greatest"):
        figure.add_scatter(
            x=[*data[key]], y=names, mode="markers", name=key, hovertemplate=f"{key} %{{x:.1f}}",
            marker={"color": PAPER, "line": {"color": INK, "width": 1}, "size": 5},
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title=axis, hoverformat=".1f")
    figure.update_layout(showlegend=False)
    return _finished(figure, 130 + 34 * max(3, len(data)), {})


def _traces(line: Line, chart: Chart, below: int) -> list[Any]:
    """Return what one line consists of, all hidden and shown together."""
    frame = line.frame
    group: dict[str, Any] = {"legendgroup": line.entry, "name": _text(line.entry)}
    group |= {"showlegend": False}
    points = {"x": frame["x"].tolist(), "y": frame["mean"].tolist()}
    if line.kind in ("front", "join"):
        is_front = line.kind == "front"
        thin = {"color": line.mark.paint, "width": 9 if is_front else 1.5}
        hover = {"hoverinfo": "skip", "opacity": 0.35 if is_front else 1}
        return [go.Scatter(mode="lines", line=thin, **points, **hover, **group)]
    customdata = frame[["least", "greatest", "seeds"]].to_numpy().tolist()
    style = line.mark.plotly(2 + 4 * below)
    style["marker"]["maxdisplayed"] = MOST_MARKERS if line.kind == "curve" else 0
    bars = {
        "error_y": {
            "array": (frame["greatest"] - frame["mean"]).tolist(),
            "arrayminus": (frame["mean"] - frame["least"]).tolist(),
            "color": line.mark.paint, "thickness": 1, "width": 3,
        }
    }  # fmt: skip
    text = "%{y:.1f} %, %{customdata[0]:.1f} to %{customdata[1]:.1f} over %{customdata[2]} seeds"
    at = "" if chart.ticks else f"<br>{_text(chart.x)}: %{{x:,.4g}}"
    found = go.Scatter(
        mode="lines+markers", customdata=customdata, **points, **group, **style,
        **(bars if line.kind == "bars" else {}),
        meta=_text(line.name), hovertemplate=f"<b>%{{meta}}</b><br>{text}{at}<extra></extra>",
    )  # fmt: skip
    is_band = line.kind == "curve" and bool((frame["seeds"] > 1).any())
    return [_band(line, group), found] if is_band else [found]


def _band(line: Line, group: dict[str, Any]) -> Any:
    """Return the area from the least to the greatest value."""
    there, back = line.frame, line.frame.iloc[::-1]
    red, green, blue = (int(line.mark.paint[at : at + 2], 16) for at in (1, 3, 5))
    return go.Scatter(
        x=[*there["x"], *back["x"]], y=[*there["least"], *back["greatest"]], mode="lines",
        fill="toself", fillcolor=f"rgba({red},{green},{blue},0.12)", line={"width": 0},
        hoverinfo="skip", **group,
    )  # fmt: skip


def _axes(figure: Any, chart: Chart, where: dict[int, tuple[int, int]], rows: int) -> None:
    """Name the outer axes; those below which nothing stands have numbers too."""
    columns = max(column for _, column in where.values())
    figure.update_xaxes(type="log" if chart.is_log else "linear")
    for number, (row, column) in where.items():
        if number + columns >= len(where):
            figure.update_xaxes(title=_text(chart.x), showticklabels=True, row=row, col=column)
        if column == 1:
            figure.update_yaxes(title=ACCURACY, row=row, col=column)
    if chart.ticks:
        names = [_text(name) for name in chart.ticks.values()]
        figure.update_xaxes(tickvals=[*chart.ticks], ticktext=names, type="linear")


def _finished(figure: Any, height: int, meta: dict[str, float], above: int = 30) -> str:
    """Return JSON that is safe within a page."""
    figure.update_layout(
        template="none", height=height, margin={"l": 60, "r": 10, "t": above, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", hovermode="closest",
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        hoverlabel={"bgcolor": PAPER, "bordercolor": NEUTRAL, "font": {"color": INK}},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": NEUTRAL, "activecolor": INK}, meta=meta,
    )  # fmt: skip
    figure.update_xaxes(gridcolor=GRID, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)
    text = json.dumps(figure.to_plotly_json(), separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("&", "\\u0026")


def _text(text: str) -> str:
    """Return plain text as Plotly wants it."""
    return escape(text, quote=False).replace("\n", "<br>")
