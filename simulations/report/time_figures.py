"""Figures of virtual time: accuracy against seconds and joules, and one round as a Gantt chart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_split.specs import shortened, stages
from simulations.report.marks import COLOURS, INK
from simulations.report.timing import TimedRun
from simulations.runs.task_files import read_round
from simulations.system.clock import Conditions, time_round
from simulations.system.graph import Graph
from simulations.system.spending import SHARES
from simulations.system.system import SYSTEM, Timed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 40
"""Clients that a Gantt chart shows."""

PAINTS = dict(zip(SHARES, COLOURS[1:], strict=False))


def curves(runs: Sequence[TimedRun]) -> Figure:
    """Draw accuracy against virtual seconds and against joules; a line for each run and system."""
    from matplotlib import rc_context

    from simulations.report.canvas import PLAIN, Canvas, named_legend
    from simulations.report.lines import logarithmic

    figure = Canvas(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    labels = list(dict.fromkeys(_label(one) for one in runs))
    firsts: dict[str, Any] = {}
    for one in runs:
        place = labels.index(_label(one))
        colour, dash = COLOURS[place % len(COLOURS)], "-:"[place // len(COLOURS) % 2]
        style = {"color": "black" if colour == INK else colour, "linestyle": dash, "lw": 1.2}
        (line,) = left.plot(one.seconds, 100 * one.accuracy, **style)
        firsts.setdefault(labels[place], line)
        right.plot(one.joules, 100 * one.accuracy, **style)
    left.set(xlabel="virtual seconds", ylabel="accuracy, %")
    right.set(xlabel="energy of all clients, J")
    logarithmic([left, right])
    options = {"loc": "outside lower center", "ncols": min(2, len(labels)), "fontsize": "small"}
    with rc_context(PLAIN):
        named_legend(figure, [*firsts.values()], labels, **options)
    return figure


def _label(one: TimedRun) -> str:
    short = " | ".join(shortened(stage, SYSTEM) for stage in stages(one.system))
    return f"{one.label}, {short}"


def gantt(graph: Graph, now: Conditions, title: str) -> Figure:
    """Draw one round: a row for the server and for each client, a bar for each task."""
    from matplotlib import rc_context
    from matplotlib.patches import Patch

    from simulations.report.canvas import PLAIN, Canvas

    times = time_round(graph, now)
    clients = np.unique(graph.clients[~graph.on_server])
    ends = {int(k): float(times.end[graph.clients == k].max()) for k in clients}
    shown = sorted(ends, key=lambda client: -ends[client])[:MOST_ROWS]
    rows = {client: number for number, client in enumerate([-1, *sorted(shown)])}
    figure = Canvas(figsize=(10, 1.6 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for share, kinds in SHARES.items():
        chosen = graph.are(*kinds)
        for client, row in rows.items():
            mine = np.flatnonzero(chosen & (graph.clients == client))
            spans = [(times.begin[n], times.end[n] - times.begin[n]) for n in mine]
            axes.broken_barh(spans, (row - 0.4, 0.8), facecolors=PAINTS[share])
    names = ["server" if client < 0 else f"client {client}" for client in rows]
    axes.set_yticks([*rows.values()], names, fontsize="small")
    axes.invert_yaxis()
    left = f", the {MOST_ROWS} last of {len(clients)} clients" if len(clients) > MOST_ROWS else ""
    axes.set(xlabel="virtual seconds", xlim=(0, times.seconds or 1))
    with rc_context(PLAIN):
        axes.set_title(f"{title}{left}")
    handles = [Patch(color=PAINTS[share], label=share) for share in SHARES]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def first_gantt(runs: Sequence[TimedRun], number: int) -> Figure:
    """Draw a round of the first run under its first system; ValueError without such a round."""
    one = runs[0]
    if number > len(one.spent):
        raise ValueError(f"round {number}: {one.run.name} has {len(one.spent)} rounds")
    before = sum(spent.seconds for spent in one.spent[: number - 1])
    _, now = one.model.in_round(Timed.of(one.run.settings), number, before)
    return gantt(read_round(one.run.folder, number), now, f"{_label(one)}: round {number}")
