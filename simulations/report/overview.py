"""Overview of a study with several tasks: the accuracy of every method on each task."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from simulations.report.chart import Chart, Line
from simulations.report.figures import Drawing
from simulations.report.labels import TASK, joined, listed
from simulations.report.lines import drawing
from simulations.report.marks import Marks
from simulations.report.panels import Panel
from simulations.report.runs import NAME, Configuration, RunCollection
from simulations.report.statistics import interval
from simulations.report.tables import WITHIN, ReportTable, with_interval

FIGURE = "accuracy-by-task"

LONG = 24
"""Characters of a task up to which it can stand below an axis."""

NUMBERED = "task, in the order of the overview"


def overview_table(collection: RunCollection) -> ReportTable | None:
    """Return final accuracy, methods by tasks; None with one method or one task."""
    cells, tasks = _cells(collection), _tasks(collection)
    if len(tasks) < 2 or len(cells) < 2:
        return None
    rows, data = [], []
    for method, found in cells.items():
        row, numbers = [method], dict[str, str | float](method=method)
        for task in tasks:
            mean, half = interval([100 * v for v in _finals(found.get(task))])
            row.append(with_interval(mean, half))
            numbers |= {task: mean, f"{task}, half interval": half}
        rows.append(row)
        data.append(numbers)
    caption = f"Final accuracy on the test set, %: mean {WITHIN} over seeds."
    return ReportTable(
        "overview", "Overview", caption, ["method", *tasks], rows, pd.DataFrame(data)
    )


def overview_figure(collection: RunCollection, marks: Marks) -> Drawing | None:
    """Draw final accuracy against the task: panels as those of the curves, but of all tasks."""
    tasks = _tasks(collection)
    if len(tasks) < 2 or len(_cells(collection)) < 2:
        return None
    found = _panels(collection, marks)
    ticks, axis_name = _ticks(tasks)
    lines = []
    for number, panel in enumerate(found):
        for label in dict.fromkeys(label for label, _ in panel.lines):
            ones = [one for name, one in panel.lines if name == label]
            frame = _line(ones, tasks)
            lines.append(Line(number, label, marks[ones[0]], frame, ones[0].method, "bars"))
    points = pd.concat([line.frame for line in lines], ignore_index=True).drop(columns="x")
    best = points.loc[points.groupby("task", sort=False)["mean"].idxmax()]
    told = listed([f"{row['task']}: {row['method']}" for row in best.to_dict("records")])
    chart = Chart(
        name=FIGURE,
        title="Accuracy by task",
        caption="Final accuracy, mean over seeds; bars from the lowest seed to the highest.",
        alt=f"Lines of final accuracy against the task. Best on {told}.",
        x=axis_name, panels=found, lines=lines, data=points, ticks=dict(enumerate(ticks)),
    )  # fmt: skip
    return drawing(chart)


def _tasks(collection: RunCollection) -> list[str]:
    """Tasks, if methods differ too; none where each run has a name, and so a task, of its own."""
    told = collection.configurations[0].told
    if NAME in told or all(key in TASK for key in told):
        return []
    return list(dict.fromkeys(one.task for one in collection.configurations))


def _cells(collection: RunCollection) -> dict[str, dict[str, Configuration]]:
    """Configurations by method and task."""
    found: dict[str, dict[str, Configuration]] = {}
    for one in collection.configurations:
        found.setdefault(one.method, {})[one.task] = one
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))  # stable


def _finals(one: Configuration | None) -> list[float]:
    return one.values("final_accuracy") if one else []


def _panels(collection: RunCollection, marks: Marks) -> list[Panel]:
    """Part methods as the curves do; a panel shows all tasks."""
    split = [key for key in marks.split if key not in TASK]
    found: dict[str, list[tuple[str, Configuration]]] = {}
    for one in collection.configurations:
        rest = [key for key in one.told if key not in (*TASK, *split)]
        where = joined(one.differing, split)
        found.setdefault(where, []).append((joined(one.differing, rest), one))
    return [Panel(tuple(split), lines) for lines in found.values()]


def _line(configurations: Sequence[Configuration], tasks: Sequence[str]) -> pd.DataFrame:
    rows = []
    for one in sorted(configurations, key=lambda one: tasks.index(one.task)):
        final = 100 * np.array(_finals(one))
        spread = {"mean": final.mean(), "least": final.min(), "greatest": final.max()}
        where = {"method": one.method, "task": one.task, "x": tasks.index(one.task)}
        rows.append({**where, **spread, "seeds": len(final)})
    return pd.DataFrame(rows)


def _ticks(tasks: Sequence[str]) -> tuple[list[str], str]:
    """Return names of tasks, and of the axis: only the number where all else is the same."""
    parts = [re.fullmatch(r"(.*=)([^=()]+)(\)?)", task) for task in tasks]
    around = {(part[1], part[3]) for part in parts if part}
    if None in parts or len(around) > 1:
        if max(map(len, tasks)) <= LONG:
            return list(tasks), ""
        return [str(number) for number in range(1, len(tasks) + 1)], NUMBERED
    begin, end = around.pop()
    return [part[2] for part in parts if part], f"{begin}...{end}"
