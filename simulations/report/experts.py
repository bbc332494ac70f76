"""How the experts of runs share the work, and whether they follow clients: a table, heat maps."""

from __future__ import annotations

import pandas as pd

from simulations.report.distributions import heat_map
from simulations.report.figures import Drawing
from simulations.report.runs import Configuration, RunCollection
from simulations.report.tables import ReportTable
from simulations.runs.routing import FILE, measures

COLUMNS = {
    "load_cv2": ("load, CV²", 1, ".3f"),
    "over": ("over capacity, %", 100, ".1f"),
    "nmi": ("NMI", 1, ".3f"),
    "nmi_shuffled": ("NMI, shuffled", 1, ".3f"),
    "p_value": ("largest p", 1, ".2f"),
}
"""Titles, factors and formats of what is shown of each block."""


def table(collection: RunCollection) -> ReportTable | None:
    """Return means over seeds, by configuration and block; None if no run has experts."""
    parts = [
        measures(frame, run.seed).assign(configuration=one.label)
        for one in collection.configurations
        for run in one.runs
        if (frame := run.read_table(FILE)) is not None
    ]
    if not parts:
        return None
    numbers = pd.concat(parts, ignore_index=True).astype({key: float for key in COLUMNS})
    groups = numbers.groupby(["configuration", "block"], sort=False)
    found = groups[[*COLUMNS]].mean().assign(p_value=groups["p_value"].max()).reset_index()
    names = found["configuration"] + ": block " + found["block"].astype(str)
    rows = [
        [name, *(_cell(key, row[key]) for key in COLUMNS)]
        for name, row in zip(names, found.to_dict("records"), strict=True)
    ]
    caption = (
        "Means over seeds, of training images through the trained model. CV²: 0 where all experts "
        "have as many tokens. NMI: of expert and classes that the client holds; shuffled: with "
        "clients' classes dealt out anew."
    )
    titles = ["configuration", *(title for title, _, _ in COLUMNS.values())]
    return ReportTable("experts", "Experts", caption, titles, rows, found)


def figures(collection: RunCollection) -> list[Drawing]:
    """Draw for each configuration with experts where the tokens of each cluster go."""
    maps = [_routing(one) for one in collection.configurations]
    found = [one for one in maps if one]
    return [_map(*one, number) for number, one in enumerate(found, start=1)]


def _cell(key: str, value: float) -> str:
    _, factor, form = COLUMNS[key]
    return "-" if pd.isna(value) else format(factor * value, form)


def _routing(one: Configuration) -> tuple[str, pd.DataFrame] | None:
    """Return where tokens go in the first run that says so."""
    for run in one.runs:
        frame = run.read_table(FILE)
        if frame is not None:
            return f"{one.label}, seed {run.seed}", frame
    return None


def _map(name: str, frame: pd.DataFrame, number: int) -> Drawing:
    data = frame.groupby(["cluster", "block", "expert"])["tokens"].sum().reset_index()
    whole = data.groupby(["cluster", "block"])["tokens"].transform("sum")
    data["share"] = 100 * data["tokens"] / whole
    data["place"] = data["block"].astype(str) + "." + data["expert"].astype(str)
    wide = data.pivot(index="cluster", columns="place", values="share")
    return heat_map(
        wide, f"experts-{number}", f"Which experts: {name}",
        "Share of the tokens of clients that hold the same classes, by block and expert, %.",
        f"Heat map of experts by classes of clients, {wide.shape[0]} times {wide.shape[1]}.",
        ("block.expert", "classes", "tokens, %"), data,
    )  # fmt: skip
