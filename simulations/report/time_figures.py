"""Figures of virtual time: accuracy against seconds and joules, and one round as a Gantt chart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from simulations.report.accuracy_panels import AccuracyPanel, accuracy_panels, short
from simulations.report.marks import COLOURS
from simulations.report.timing import TimedRun
from simulations.runs.task_files import read_round
from simulations.system.clock import Conditions, time_round
from simulations.system.graph import Graph
from simulations.system.spending import SHARES
from simulations.system.system import Timed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 40
"""Clients that a Gantt chart shows."""

AXES = {"seconds": "virtual seconds", "joules": "energy of all clients, J"}

PAINTS = dict(zip(SHARES, COLOURS[1:], strict=False))


def curves(runs: Sequence[TimedRun], spent: Literal["seconds", "joules"]) -> Figure:
    """Draw accuracy against virtual seconds or joules, a panel for each system.

    A line is the mean over seeds after each round that all of them reached.
    """
    groups: dict[tuple[str, str], list[TimedRun]] = {}
    for one in runs:
        groups.setdefault((one.label, one.system), []).append(one)
    panels = {one.system: AccuracyPanel(one.system, AXES[spent], {}) for one in runs}
    for (label, system), group in groups.items():
        panels[system].lines[label] = _mean(group, spent), _mean(group, "accuracy")
    return accuracy_panels([*panels.values()])


def _mean(group: Sequence[TimedRun], of: str) -> np.ndarray:
    length = min(len(one.spent) for one in group)
    return np.mean([getattr(one, of)[:length] for one in group], axis=0)


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
    return gantt(
        read_round(one.run.folder, number),
        now,
        f"{one.label}, {short(one.system)}: round {number}",
    )
