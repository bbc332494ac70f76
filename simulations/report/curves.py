"""Accuracy against what was spent: curves over the rounds, and the Pareto front of their ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from simulations.report.figures import (
    Drawing,
    Panel,
    drawn,
    grid,
    legend_columns,
    marks,
    named,
    our_style,
    panels,
)
from simulations.report.labels import families, listed
from simulations.report.runs import Configuration, RunCollection
from simulations.report.statistics import non_dominated
from simulations.runs.columns import PAYLOAD, SENT, SHOWN, Metric

ACCURACY = "test accuracy, %"
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


def figures(collection: RunCollection) -> list[Drawing]:
    """All curves, then the fronts."""
    found = panels(collection.configurations)
    curves = [_rounds(found), *(_curves(found, cost) for cost in cost_axes(collection))]
    whole = _by_family(panels(collection.configurations, most=len(collection.configurations)))
    fronts = [_front(whole, cost) for cost in BOTH_WAYS]  # points do not hide each other
    return [drawing for drawing in (*curves, *fronts) if drawing]


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


def _rounds(found: list[Panel]) -> Drawing | None:
    return _draw(found, "rounds", "round", lambda one: curve(one, None))


def _curves(found: list[Panel], cost: CostAxis) -> Drawing | None:
    def points(one: Configuration) -> pd.DataFrame:
        frame = curve(one, cost)
        return frame[frame[cost.axis] > 0]  # fedavg sends no payload: no curve

    return _draw(found, cost.name, cost.axis, points)


def _draw(
    found: list[Panel], name: str, x: str, points: Callable[[Configuration], pd.DataFrame]
) -> Drawing | None:
    data = []
    numbers = numbered(found)
    file = "accuracy-" + name.replace(" ", "-")
    with our_style(file):
        figure, axes = grid(found, x, ACCURACY)
        for axis, panel in zip(axes, found, strict=True):
            for label, one in panel.lines:
                frame = points(one)
                if len(frame):
                    _line(axis, frame, x, label, marks(numbers[label]), len(panel.lines))
                    data.append(frame.assign(configuration=one.label))
        if not data:
            return None
        drawn_numbers = pd.concat(data, ignore_index=True)
        if x == "round":
            axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        is_log = name.startswith("payload") and _is_spread(drawn_numbers, x)
        label_lines(figure, axes, is_log)
        absent = _absent(found, drawn_numbers)
        alt = f"Lines of test accuracy against {x}. {_ends(drawn_numbers)}"
        caption = "Mean over seeds; the band reaches from the lowest seed to the highest." + absent
        title = f"Accuracy against {name}"
        return drawn(figure, file, title, caption, alt, _front_column(drawn_numbers))


def _by_family(found: list[Panel]) -> list[Panel]:
    """Name lines after their family: one colour and marker for a codec at all its ratios."""
    names = families(numbered(found))
    return [replace(panel, lines=[(names[k], one) for k, one in panel.lines]) for panel in found]


def _front(found: list[Panel], cost: CostAxis) -> Drawing | None:
    data = []
    numbers = numbered(found)
    file = "pareto-" + cost.name.replace(" ", "-")
    with our_style(file):
        figure, axes = grid(found, cost.axis, ACCURACY)
        for axis, panel in zip(axes, found, strict=True):
            frame = _ends_of(panel.lines, cost)
            if frame.empty:
                continue
            data.append(frame)
            ordered = frame.sort_values(cost.axis)
            for label, number in numbers.items():
                rows = ordered[ordered["label"] == label]
                if rows.empty:
                    continue
                errors = [rows["mean"] - rows["least"], rows["greatest"] - rows["mean"]]
                axis.errorbar(
                    rows[cost.axis], rows["mean"], yerr=errors, label=label, capsize=2, ms=5,
                    lw=0.8, elinewidth=0.8, **marks(number),
                )  # fmt: skip
            front = ordered[ordered["on front"]]
            axis.plot(front[cost.axis], front["mean"], color="#888888", lw=4, alpha=0.4, zorder=1)
        if not data:
            return None
        points = pd.concat(data, ignore_index=True).drop(columns="label")
        label_lines(figure, axes, _is_spread(points, cost.axis))
        best = listed(list(points[points["on front"]]["configuration"]))
        return drawn(
            figure, file, f"Pareto front: {cost.name}",
            "Final accuracy, mean over seeds; bars reach from the lowest seed to the highest. "
            "A thin line joins what differs in numbers only, the broad one what no other "
            "point dominates." + _absent(found, points),
            f"Points of final accuracy against {cost.axis}. On the front: {best}.", points,
        )  # fmt: skip


def _ends_of(lines: Sequence[tuple[str, Configuration]], cost: CostAxis) -> pd.DataFrame:
    rows = []
    for label, one in lines:
        final = 100 * np.array(one.values("final_accuracy"))
        spent = float(np.mean([cost.spent(run.rounds).iloc[-1] for run in one.runs]))
        if spent > 0:
            row = {"configuration": one.label, "label": label, cost.axis: spent}
            spread = {"least": final.min(), "greatest": final.max(), "seeds": len(final)}
            rows.append({**row, "mean": final.mean(), **spread})
    frame = pd.DataFrame(rows)
    return frame.assign(
        **{"on front": non_dominated(list(frame[cost.axis]), list(frame["mean"]))} if rows else {}
    )


def _line(
    axis: Any, frame: pd.DataFrame, x: str, label: str, style: dict[str, Any], lines: int
) -> None:
    every = max(1, len(frame) // 6)
    axis.plot(frame[x], frame["mean"], label=label, lw=1.3, ms=4, markevery=every, **style)
    if (frame["seeds"] > 1).any():
        alpha = 0.15 if lines < 5 else 0.07
        low, high = frame["least"], frame["greatest"]
        axis.fill_between(frame[x], low, high, color=style["color"], alpha=alpha, lw=0)


def label_lines(figure: Figure, axes: list[Any], is_log: bool) -> None:
    """Scale the axes and name every line once."""
    entries: dict[str, Any] = {}
    for axis in axes:
        if is_log:
            axis.set_xscale("log")
            low, high = axis.get_xlim()
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            axis.xaxis.set_minor_formatter(lambda value, _: "")
        handles, labels = axis.get_legend_handles_labels()
        entries.update(zip(labels, handles, strict=True))
    names = named(entries)
    figure.legend(
        entries.values(), names, loc="outside lower left", fontsize="small",
        ncols=legend_columns(figure.get_figwidth(), names),
    )  # fmt: skip


def numbered(found: list[Panel]) -> dict[str, int]:
    """Number the lines, the same in every panel of a figure."""
    labels = dict.fromkeys(label for panel in found for label, _ in panel.lines)
    return {label: number for number, label in enumerate(labels)}


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
