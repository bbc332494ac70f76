"""Figures of how samples and accuracy are distributed over clients and classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simulations.data.statistics import choice, typical
from simulations.report.figures import Drawing, drawn, named, our_style
from simulations.report.finished import FinishedRun
from simulations.report.labels import listed
from simulations.report.marks import COLOURS, INK
from simulations.report.plots import boxes_plot, heat_plot
from simulations.report.runs import Configuration, RunCollection

PARTITION, CLASSES, SHARDS = "partition.csv", "classes.csv", "shards.csv"
"""Samples by client and class; accuracy by round and class; accuracy by round and client."""

MOST_NAMES = 80
"""Most rows or columns that a heat map still names one by one."""

BOX_AXIS = "accuracy on the client's own held-out samples, %"

QUANTILES = {"least": 0.0, "10 %": 0.1, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "90 %": 0.9}


def figures(collection: RunCollection) -> list[Drawing]:
    """Draw what the runs have recorded, if anything."""
    found = [*_partitions(collection), _classes(collection), _clients(collection)]
    return [drawing for drawing in found if drawing]


def _partitions(collection: RunCollection) -> list[Drawing]:
    """One heat map for each way to share out the data, of its first seed."""
    by_task: dict[str, FinishedRun] = {}
    for one in collection.configurations:
        for run in one.runs:
            if one.task not in by_task and run.read_table(PARTITION) is not None:
                by_task[one.task] = run
    maps = []
    for number, (task, run) in enumerate(by_task.items(), start=1):
        frame = run.read_table(PARTITION)
        assert frame is not None
        sizes = frame.groupby("client")["samples"].agg(["sum", "count"])
        shown = typical(frame)
        some = choice(len(shown), len(sizes))
        data = frame.loc[frame["client"].isin(shown), ["client", "class", "samples"]]
        held = data.pivot_table(
            index="class", columns="client", values="samples", aggfunc="sum", fill_value=0
        )[shown]
        where = f"{task or 'the partition'}, seed {run.seed}"
        alt = (
            f"Heat map of samples by class and client, {where}: {len(sizes)} clients with "
            f"{sizes['sum'].min():,.0f} to {sizes['sum'].max():,.0f} samples, on average of "
            f"{sizes['count'].mean():.1f} of {frame['class'].nunique()} classes."
        )
        drawing = heat_map(
            held.where(held > 0), f"partition-{number}", f"Who holds what: {where}",
            "Training samples of every class (rows) at every client (columns); blank for none."
            + (f" Shown are {some}; all are in {PARTITION}." if some else ""),
            alt, ("client", "class", "samples"), data,
        )  # fmt: skip
        maps.append(drawing)
    return maps


def _classes(collection: RunCollection) -> Drawing | None:
    """Heat map of configurations and classes: accuracy after the last round, mean over seeds."""
    parts = [
        frame for one in collection.configurations if (frame := _last(one, CLASSES)) is not None
    ]
    if not parts:
        return None
    data = pd.concat(parts, ignore_index=True)
    data["name"] = data["name"].astype(str) if "name" in data else data["class"].astype(str)
    groups = data.groupby(["configuration", "class", "name"], sort=False)["accuracy"]
    found = groups.agg(accuracy="mean", seeds="count").reset_index()
    found["accuracy"] *= 100
    table = found.pivot(index="configuration", columns="class", values="accuracy")
    table = table.reindex(found["configuration"].unique())
    names = found.drop_duplicates("class").set_index("class")["name"]
    table.columns = pd.Index([names[column] for column in table.columns])
    worst = listed(
        [f"{name}: {row.min():.1f} % in {row.idxmin()}" for name, row in table.iterrows()]
    )
    return heat_map(
        table, "accuracy-per-class", "Accuracy per class",
        "After the last round, mean over seeds, %.",
        f"Heat map of accuracy by configuration and class. Worst classes: {worst}.",
        ("class", "", "accuracy, %"), found,
    )  # fmt: skip


def _clients(collection: RunCollection) -> Drawing | None:
    """Boxes of the clients' accuracies after the last round, all seeds together."""
    rows = []
    for one in collection.configurations:
        frame = _last(one, SHARDS)
        if frame is not None:
            values = 100 * frame["accuracy"].dropna()
            spread = {name: values.quantile(q) for name, q in QUANTILES.items()}
            about = {"configuration": one.label, "clients": len(values)}
            rows.append({**about, **spread, "greatest": values.max(), "mean": values.mean()})
    if not rows:
        return None
    return _boxes(pd.DataFrame(rows))


def _boxes(data: pd.DataFrame) -> Drawing:
    name = "accuracy-per-client"
    with our_style(name):
        names = named(data["configuration"], 44)
        width = 4.8 if max(map(len, names)) < 30 else 7.0
        height = 0.8 + _height(names)
        figure = Figure(figsize=(width, height), layout="constrained")
        axis = figure.subplots()
        boxes = [
            {"label": name, "med": row["median"], "q1": row["25 %"],
             "q3": row["75 %"], "whislo": row["10 %"], "whishi": row["90 %"],
             "fliers": [row["least"], row["greatest"]]}
            for name, row in zip(names, data.to_dict("records"), strict=True)
        ]  # fmt: skip
        lines = {"color": INK, "lw": 0.8}
        axis.bxp(
            boxes, orientation="horizontal", patch_artist=True, widths=0.55,
            boxprops={"facecolor": COLOURS[-1], "edgecolor": INK, "lw": 0.8},
            medianprops={"color": INK, "lw": 1.8}, whiskerprops=lines, capprops=lines,
            flierprops={"marker": "o", "ms": 3, "markeredgecolor": INK},
        )  # fmt: skip
        axis.invert_yaxis()
        axis.tick_params(axis="y", labelsize="small")
        axis.set_xlabel(BOX_AXIS)
        axis.grid(axis="y", alpha=0)
        medians = zip(data["configuration"], data["median"], strict=True)
        told = listed([f"{label} {value:.1f} %" for label, value in medians])
        alt = f"Boxes of the clients' accuracies. Medians: {told}."
        caption = (
            "After the last round, all clients of all seeds: median, box of the middle half, "
            "whiskers from 10 to 90 %, dots for the worst and the best client."
        )
        plot = boxes_plot(data, BOX_AXIS)
        return drawn(figure, name, "Accuracy per client", caption, alt, data, plot)


def _last(one: Configuration, file: str) -> pd.DataFrame | None:
    """Rows of the last round that was measured, of all seeds."""
    frames = []
    for run in one.runs:
        frame = run.read_table(file)
        if frame is not None:
            last = frame[frame["round"] == frame["round"].max()]
            frames.append(last.assign(configuration=one.label, seed=run.seed))
    return pd.concat(frames, ignore_index=True) if frames else None


def heat_map(
    table: pd.DataFrame,
    name: str,
    title: str,
    caption: str,
    alt: str,
    axes: Sequence[str],
    data: pd.DataFrame,
) -> Drawing:
    """Draw a table as colours; `axes` name columns, rows and values, `data` are the numbers."""
    with our_style(name):
        names, columns = named(map(str, table.index), 44), named(map(str, table.columns), 30)
        below = 0.07 * _longest(columns) if _is_turned(columns) else 0.0
        height = 1.1 + min(14.0, _height(names)) + below
        width = 4.8 if max(map(len, names)) < 30 else 7.0
        figure = Figure(figsize=(width, max(2.2, height)), layout="constrained")
        axis = figure.subplots()
        shown = np.ma.masked_invalid(table.to_numpy(dtype=float))
        # an image: a thousand clients would be a hundred thousand rectangles
        image = axis.imshow(shown, aspect="auto", interpolation="none", cmap="cividis", vmin=0)
        _ticks(axis.xaxis, columns)
        _ticks(axis.yaxis, names)
        axis.set_xlabel(axes[0])
        axis.set_ylabel(axes[1])
        axis.grid(visible=False)
        place: dict[str, Any] = {"location": "top"} if len(names) > 20 else {"pad": 0.02}
        bar = figure.colorbar(image, ax=axis, aspect=30, **place)
        bar.set_label(axes[2])
        bar.outline.set_visible(False)
        return drawn(figure, name, title, caption, alt, data, heat_plot(table, axes))


def _height(names: Sequence[str]) -> float:
    """Inches for as many rows of equal height, none lower than its name."""
    return len(names) * (0.08 + 0.12 * max(1 + name.count("\n") for name in names))


def _ticks(axis: Any, names: Sequence[str]) -> None:
    """Name every row or column where there is room, else some."""
    places = range(0, len(names), _step(names))
    turned = 90 if axis.axis_name == "x" and _is_turned(names) else 0
    shown = [names[place] for place in places]
    axis.set_ticks(places, shown, rotation=turned, fontsize="small")


def _step(names: Sequence[str]) -> int:
    """Tell of which rows or columns the name is shown: of every one, or of every n-th."""
    return 1 if len(names) <= MOST_NAMES else 10 * -(-len(names) // (10 * 12))


def _is_turned(names: Sequence[str]) -> bool:
    """Tell whether the names of columns do not fit beside each other."""
    return _longest(names) * len(names[:: _step(names)]) > 50


def _longest(names: Sequence[str]) -> int:
    """Return the letters of the longest line."""
    return max(len(line) for name in names for line in name.split("\n"))
