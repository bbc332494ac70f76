"""Accuracy against what was spent: curves over the rounds, and the Pareto front of their ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from simulations.report.chart import Chart, Line
from simulations.report.figures import Drawing
from simulations.report.labels import families, listed
from simulations.report.lines import drawing
from simulations.report.marks import Mark, Marks, shared
from simulations.report.panels import Panel, panels
from simulations.report.runs import Configuration, RunCollection
from simulations.report.statistics import non_dominated
from simulations.runs.columns import PAYLOAD, SENT, SHOWN, Metric

MOST_POINTS = 80
"""Of a curve; of a longer one rounds at equal distances are drawn."""


@dataclass(frozen=True)
class CostAxis:
    """The axis of a figure: metrics that add up, together, in a unit for people."""

    name: str
    axis: str
    columns: tuple[str, ...]
    factor: float

    @classmethod
    def of(cls, metric: Metric) -> CostAxis:
        """Make the axis of one metric."""
        return cls(metric.title, metric.heading, (metric.name,), metric.factor)

    def spent(self, rounds: pd.DataFrame) -> pd.Series[float]:
        """Return the cost so far, after every round; nan if it was not recorded."""
        known = rounds.reindex(columns=list(self.columns)).astype(float)
        return self.factor * known.sum(axis=1, skipna=False).cumsum()


MB = SHOWN["bytes"][1]
BOTH_WAYS = (
    CostAxis("payload", "payload sent, both ways, MB", PAYLOAD, MB),
    CostAxis("payload and weights", "payload and weights sent, both ways, MB", SENT, MB),
)


def cost_axes(collection: RunCollection) -> list[CostAxis]:
    """Return the axes for all costs that the runs declare; bytes of both directions are one."""
    known = collection.metrics.values()
    costs = [one for one in known if one.adds_up and one.is_cost and one.name not in SENT]
    return [*BOTH_WAYS, *map(CostAxis.of, costs)]


def figures(collection: RunCollection, marks: Marks) -> list[Drawing]:
    """All curves, then the fronts."""
    found = panels(collection.configurations)
    curves = [_rounds(found, marks), *(_curves(found, c, marks) for c in cost_axes(collection))]
    whole = panels(collection.configurations, most=len(collection.configurations))
    fronts = [_front(whole, cost, marks) for cost in BOTH_WAYS]  # points do not hide each other
    return [drawing(chart) for chart in (*curves, *fronts) if chart]


def curve(one: Configuration, cost: CostAxis | None) -> pd.DataFrame:
    """Mean, least and greatest accuracy over seeds after each round that all of them reached."""
    runs = [run.rounds for run in one.runs]
    length = min(len(rounds) for rounds in runs)
    step = -(-length // MOST_POINTS)
    kept = sorted({*range(0, length, step), length - 1})
    accuracy = 100 * np.array([rounds["accuracy"].to_numpy()[kept] for rounds in runs])
    frame = pd.DataFrame({"round": runs[0]["round"].to_numpy()[kept]})
    if cost:
        frame[cost.axis] = np.mean([cost.spent(r).to_numpy()[kept] for r in runs], axis=0)
    frame["mean"], frame["least"] = accuracy.mean(axis=0), accuracy.min(axis=0)
    frame["greatest"], frame["seeds"] = accuracy.max(axis=0), len(runs)
    return frame


def _rounds(found: list[Panel], marks: Marks) -> Chart | None:
    return _chart(found, "rounds", "round", lambda one: curve(one, None), marks)


def _curves(found: list[Panel], cost: CostAxis, marks: Marks) -> Chart | None:
    def points(one: Configuration) -> pd.DataFrame:
        frame = curve(one, cost)
        return frame[frame[cost.axis] > 0]  # fedavg sends no payload: no curve

    return _chart(found, cost.name, cost.axis, points, marks)


def _chart(
    found: list[Panel],
    name: str,
    x: str,
    points: Callable[[Configuration], pd.DataFrame],
    marks: Marks,
) -> Chart | None:
    lines, data = [], []
    for number, panel in enumerate(found):
        for label, one in panel.lines:
            frame = points(one)
            if len(frame):
                shown = frame.rename(columns={x: "x"})
                lines.append(Line(number, label, marks[one], shown, one.label))
                data.append(frame.assign(configuration=one.label))
    if not data:
        return None
    numbers = pd.concat(data, ignore_index=True)
    return Chart(
        name="accuracy-" + name.replace(" ", "-"),
        title=f"Accuracy against {name}",
        caption="Mean over seeds; the band reaches from the lowest seed to the highest."
        + _absent(found, numbers),
        alt=f"Lines of test accuracy against {x}. {_ends(numbers)}",
        x=x, panels=found, lines=lines, data=_front_column(numbers),
        is_log=name.startswith("payload") and _is_spread(numbers, x),
    )  # fmt: skip


def _front(found: list[Panel], cost: CostAxis, marks: Marks) -> Chart | None:
    names = _families(found, marks)
    lines, data = [], []
    for number, panel in enumerate(found):
        frame = _ends_of(panel.lines, cost)
        if frame.empty:
            continue
        data.append(frame)
        ordered = frame.rename(columns={cost.axis: "x"}).sort_values("x")
        lines += _points(number, panel, ordered, names, marks)
        lines.append(Line(number, "", Mark(None), ordered[ordered["on front"]], kind="front"))
    if not data:
        return None
    points = pd.concat(data, ignore_index=True)
    best = listed(list(points[points["on front"]]["configuration"]))
    return Chart(
        name="pareto-" + cost.name.replace(" ", "-"),
        title=f"Pareto front: {cost.name}",
        caption="Final accuracy, mean over seeds; bars reach from the lowest seed to the highest. "
        "A thin line joins what differs in numbers only, the broad one what no other "
        "point dominates." + _absent(found, points),
        alt=f"Points of final accuracy against {cost.axis}. On the front: {best}.",
        x=cost.axis, panels=found, lines=lines, data=points,
        is_log=_is_spread(points, cost.axis),
    )  # fmt: skip


def _families(found: list[Panel], marks: Marks) -> dict[str, str]:
    """Name labels after their family, whose members differ in numbers only, if it has one colour.

    Others keep their own name.
    """
    colours: dict[str, set[int | None]] = {}
    of_label = {label: marks[one].colour for panel in found for label, one in panel.lines}
    family = families(of_label)
    for label, colour in of_label.items():
        colours.setdefault(family[label], set()).add(colour)
    return {label: name if len(colours[name]) == 1 else label for label, name in family.items()}


def _points(
    number: int, panel: Panel, ordered: pd.DataFrame, names: dict[str, str], marks: Marks
) -> list[Line]:
    """Return the points of a panel, and thin lines that join those of a family."""
    lines: list[Line] = []
    family = families(label for label, _ in panel.lines)
    configurations = {one.label: (label, one) for label, one in panel.lines}
    members: dict[str, list[str]] = {}
    for name, (label, one) in configurations.items():
        row = ordered[ordered["configuration"] == name]
        if len(row):
            members.setdefault(family[label], []).append(name)
            lines.append(Line(number, names[label], marks[one], row, name, "bars"))
    for among in members.values():
        if len(among) > 1:
            own = shared(marks[configurations[name][1]] for name in among)
            entries = {names[configurations[name][0]] for name in among}
            entry = entries.pop() if len(entries) == 1 else ""
            rows = ordered[ordered["configuration"].isin(among)]
            lines.append(Line(number, entry, own, rows, kind="join"))
    return lines


def _ends_of(lines: Sequence[tuple[str, Configuration]], cost: CostAxis) -> pd.DataFrame:
    rows = []
    for _, one in lines:
        final = 100 * np.array(one.values("final_accuracy"))
        spent = float(np.mean([cost.spent(run.rounds).iloc[-1] for run in one.runs]))
        if spent > 0:
            row = {"configuration": one.label, cost.axis: spent}
            spread = {"least": final.min(), "greatest": final.max(), "seeds": len(final)}
            rows.append({**row, "mean": final.mean(), **spread})
    frame = pd.DataFrame(rows)
    return frame.assign(
        **{"on front": non_dominated(list(frame[cost.axis]), list(frame["mean"]))} if rows else {}
    )


def _is_spread(frame: pd.DataFrame, x: str) -> bool:
    """Tell whether the ends of the curves differ so much that only a logarithm shows them."""
    ends = frame.groupby("configuration")[x].max()
    return bool(ends.max() > 5 * ends.min() > 0)


def _front_column(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[["configuration", *(name for name in frame if name != "configuration")]]


def _absent(found: list[Panel], data: pd.DataFrame) -> str:
    shown = set(data["configuration"])
    names = [one.label for panel in found for _, one in panel.lines if one.label not in shown]
    return (
        f" Not drawn, as nothing of it was sent or recorded: {'; '.join(names)}." if names else ""
    )


def _ends(frame: pd.DataFrame) -> str:
    last = frame.groupby("configuration", sort=False)["mean"].last().sort_values(ascending=False)
    return f"At the end: {listed([f'{name} {value:.1f} %' for name, value in last.items()])}."
