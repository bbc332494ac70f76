"""What `fl-split infer` has found, where runs have it: a table, frontiers, where images left."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from simulations.report import kept_patches
from simulations.report.distributions import heat_map
from simulations.report.figures import Drawing, drawn, named, our_style
from simulations.report.marks import COLOURS, INK
from simulations.report.plots import lines_plot
from simulations.report.runs import RunCollection
from simulations.report.tables import ReportTable

FOLDER = "infer"
FILES = ("JPEG", "WEBP")
"""Rows that send the image as a file begin with these."""

COLUMNS = {
    "accuracy": ("accuracy, %", 100, ".1f"),
    "return": ("return, %", 100, ".1f"),
    "mixture": ("random mixture, %", 100, ".1f"),
    "file_accuracy": ("as files, %", 100, ".1f"),
    "sent": ("sent, %", 100, ".1f"),
    "bytes_up": ("payload, bytes", 1, ",.0f"),
    "device_flops": ("device, MFLOP", 1e-6, ",.2f"),
    "seconds": ("s", 1, ".3g"),
    "joules": ("J", 1, ".3g"),
}
"""Titles, factors and formats of what is shown of each policy."""


def table(collection: RunCollection) -> ReportTable | None:
    """Return means over seeds of each policy and control; None if no run has been served."""
    found = _read(collection, "infer.csv")
    if found is None:
        return None
    shown = found[~found["policy"].str.startswith(FILES)]
    shown = shown.reindex(columns=["configuration", "policy", *COLUMNS])
    groups = shown.groupby(["configuration", "policy"], sort=False)
    means = groups[[*COLUMNS]].mean().reset_index()
    kept = {key: COLUMNS[key] for key in COLUMNS if means[key].notna().any()}
    names = means["configuration"] + ": " + means["policy"]
    rows = [
        [name, *(_cell(row[key], *kept[key][1:]) for key in kept)]
        for name, row in zip(names, means.to_dict("records"), strict=True)
    ]
    caption = (
        "Means over test images and seeds, by fl-split infer; mixture: at equal bytes, of "
        "controllers at their rate; as files: JPEG or WebP of no more bytes."
    )
    titles = ["configuration: policy", *(title for title, _, _ in kept.values())]
    return ReportTable("split-inference", "Split inference", caption, titles, rows, means)


def figures(collection: RunCollection) -> list[Drawing]:
    """Draw frontiers, where images left and the patches that went on, if a run was served."""
    found = [one for one in (_frontiers(collection), _left(collection)) if one]
    return [*found, *kept_patches.drawings(collection, FOLDER)]


def _read(collection: RunCollection, file: str) -> pd.DataFrame | None:
    """Read a table of `infer` of all runs that have one, with configuration and seed."""
    parts = [
        frame.assign(configuration=one.label, seed=run.seed)
        for one in collection.configurations
        for run in one.runs
        if (frame := run.read_table(f"{FOLDER}/{file}")) is not None
    ]
    return pd.concat(parts, ignore_index=True) if parts else None


def _cell(value: float, factor: float, form: str) -> str:
    return "-" if pd.isna(value) else format(factor * value, form)


def _frontiers(collection: RunCollection) -> Drawing | None:
    found = _read(collection, "frontier.csv")
    if found is None:
        return None
    found["entry"] = found["configuration"] + ": " + found["sweep"].str.partition("(")[0]
    groups = found.groupby(["entry", "policy"], sort=False)[["bytes_up", "accuracy"]]
    data = groups.mean().reset_index()
    data["accuracy"] *= 100
    parts = data.groupby("entry", sort=False)
    lines = {str(entry): one.sort_values("bytes_up") for entry, one in parts}
    axes = ("payload of an image, bytes", "accuracy, %")
    with our_style("frontiers"):
        return drawn(
            _lines(lines, axes), "frontiers", "Frontiers of split inference",
            "All thresholds of each policy, means over seeds, on the test images.",
            f"Accuracy against payload bytes of an image for {len(lines)} policies.",
            data, lines_plot(lines, ("bytes_up", "accuracy"), axes),
        )  # fmt: skip


def _lines(lines: dict[str, pd.DataFrame], axes: Sequence[str]) -> Figure:
    names = named(lines)
    legend = sum(0.07 + 0.16 * (1 + name.count("\n")) for name in names)
    figure = Figure(figsize=(4.8, 3.2 + legend), layout="constrained")
    axis = figure.subplots()
    for number, (frame, name) in enumerate(zip(lines.values(), names, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        axis.plot(frame["bytes_up"], frame["accuracy"], ".-", color=colour, label=name)
    axis.set_xlabel(axes[0])
    axis.set_ylabel(axes[1])
    figure.legend(loc="outside lower center", labelcolor=INK)
    return figure


def _left(collection: RunCollection) -> Drawing | None:
    found = _read(collection, "places.csv")
    if found is None:
        return None
    found["row"] = found["configuration"] + ": " + found["policy"]
    data = found.groupby(["row", "place"], sort=False)["share"].mean().mul(100).reset_index()
    wide = data.pivot(index="row", columns="place", values="share").fillna(0.0)
    wide = wide.reindex(columns=data["place"].unique())
    return heat_map(
        wide, "where-images-left", "Where images left",
        "Share of the test images that left at an exit or were sent from there, %.",
        f"Heat map of places by policy, {len(wide)} policies and {wide.shape[1]} places.",
        ("place", "", "images, %"), data,
    )  # fmt: skip
