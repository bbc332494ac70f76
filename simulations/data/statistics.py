"""Partitions in numbers: how many samples of which class each client holds.

Skew is measured against the labels of all clients together. Entropy is that of a client's
labels, in bits: 0 for one class, log2(C) for C classes alike. The distance is Jensen and
Shannon's (the root of their divergence, base 2): 0 for the global mixture of labels, 1 for
labels that nobody else holds any of.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from simulations.data.partition import Unheld
from simulations.data.ragged import Ragged, class_counts
from simulations.data.samples import Samples

FILE, PLOT = "partition.csv", "partition.svg"

MOST_ROWS = 20
"""Clients that are shown one by one on a terminal."""

MOST_CLASSES = 40
"""Classes that fit a line of the terminal's heat map."""

MOST_COLUMNS = 1000
"""Clients that fit a figure; of more, so many are shown."""

BLOCK = 4096
"""Clients that are computed at once: all of them would take several times the memory."""

SHADES = " ·░▒▓█"

Counts = NDArray[np.int64]
"""(clients, classes) samples."""


def count(table: Samples) -> Counts:
    """Count the samples of each client and class."""
    return class_counts(table)


def tidy(counts: Counts) -> pd.DataFrame:
    """Return one row for each client and class of which it has samples."""
    clients, classes = np.nonzero(counts)
    samples = counts[clients, classes]
    return pd.DataFrame({"client": clients, "class": classes, "samples": samples})


def per_client(counts: Counts) -> pd.DataFrame:
    """Return samples, classes, entropy and distance to the global labels of every client.

    A client without samples has neither entropy nor distance.
    """
    whole, sizes = counts.sum(axis=0, keepdims=True), counts.sum(axis=1)
    skew = {name: np.full(len(counts), np.nan) for name in ("entropy", "distance")}
    held = np.flatnonzero(sizes)
    for some in np.array_split(held, 1 + len(held) // BLOCK):
        skew["entropy"][some] = entropy(counts[some], base=2, axis=1)
        skew["distance"][some] = jensenshannon(counts[some], whole, base=2, axis=1)
    return pd.DataFrame(
        {
            "client": np.arange(len(counts)),
            "samples": sizes,
            "classes": (counts > 0).sum(axis=1),
            **skew,
        }
    )


def partition_summary(counts: Counts) -> dict[str, float]:
    """Sum a partition up; entropy and distance are means over clients that hold samples."""
    clients = per_client(counts)
    sizes = clients["samples"].to_numpy()
    return {
        "clients": len(sizes),
        "empty clients": int((sizes == 0).sum()),
        "samples": int(sizes.sum()),
        "fewest samples": int(sizes.min()),
        "median samples": float(np.median(sizes)),
        "most samples": int(sizes.max()),
        "Gini of sizes": gini(sizes),
        "mean classes": float(clients["classes"].mean()),
        "mean label entropy, bits": float(clients["entropy"].mean()),
        "mean Jensen-Shannon distance": float(clients["distance"].mean()),
    }


def gini(sizes: Sequence[int] | NDArray[np.int64]) -> float:
    """Return Gini's coefficient: 0 if all are equal, near 1 if one has everything."""
    ordered = np.sort(np.asarray(sizes, dtype=np.float64))
    ranks = np.arange(1, len(ordered) + 1)
    return float((2 * ranks - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))


def write(table: Samples, folder: Path) -> None:
    """Write the counts of a run into its folder, without a table of all clients and classes."""
    parts = Ragged.of(table.partitions)
    cells = parts.owners * table.num_classes + table.labels[parts.flat]
    found, samples = np.unique(cells, return_counts=True)
    clients, classes = np.divmod(found, table.num_classes)
    frame = pd.DataFrame({"client": clients, "class": classes, "samples": samples})
    frame.to_csv(folder / FILE, index=False)


def typical(frame: pd.DataFrame, most: int = MOST_COLUMNS) -> NDArray[np.int64]:
    """Choose the clients of a figure: all that hold samples, or of more than `most` so many.

    Parameters
    ----------
    frame : DataFrame
        What :func:`tidy` returns.
    most : int
        Most clients that are chosen.

    Returns
    -------
    clients : array
        Sorted, if they are all. Else evenly spaced in the order of their commonest class and,
        within it, of their samples.
    """
    by_client = frame.groupby("client")["samples"]
    commonest = frame.loc[by_client.idxmax(), ["client", "class"]]
    clients = commonest["client"].to_numpy()
    if len(clients) <= most:
        return clients
    order = np.lexsort((by_client.sum().to_numpy(), commonest["class"].to_numpy()))
    return clients[order[np.arange(most) * len(order) // most]]


def choice(shown: int, clients: int) -> str:
    """Say which clients :func:`typical` has chosen; nothing if it shows all."""
    order = "in order of their commonest class and samples"
    return f"{shown:,} of {clients:,} clients, {order}" if shown < clients else ""


def partition_plot(counts: Counts, names: Sequence[str], path: Path) -> None:
    """Draw clients against classes; colours differ in lightness too."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown, holding = typical(tidy(counts)), int((counts.sum(axis=1) > 0).sum())
    some = choice(len(shown), holding)
    counts = counts[shown] if some else counts
    clients, classes = counts.shape
    size = min(16.0, 3 + 0.12 * clients), min(12.0, 1.8 + 0.22 * classes)
    figure = Figure(figsize=size, layout="constrained")
    with rc_context({"text.parse_math": False}):  # a dollar in a name begins no formula
        axis = figure.subplots()
        image = axis.imshow(counts.T, cmap="cividis", aspect="auto", interpolation="nearest")
        axis.set_xlabel(some or "client")
        axis.set_ylabel("class")
        if classes <= MOST_CLASSES:
            axis.set_yticks(range(classes), names)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, label="samples")
        figure.savefig(path)


def summary_table(counts: Counts, unheld: Unheld) -> Table:
    """Show :func:`summary` on a terminal, and what nobody holds."""
    table = Table(box=SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in partition_summary(counts).items():
        text = f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"
        table.add_row(f"{name}, never drawn" if name == "empty clients" and value else name, text)
    table.add_row("training images nobody holds", f"{unheld.samples:,}")
    table.add_row("classes nobody holds", Text(", ".join(unheld.classes) or "none"))
    return table


def clients_table(counts: Counts) -> Table:
    """Show the first clients on a terminal: numbers, and how their labels are distributed."""
    shown = counts[:MOST_ROWS]
    rest = len(counts) - len(shown)
    has_map = counts.shape[1] <= MOST_CLASSES
    table = Table(box=SIMPLE, caption=f"and {rest:,} more clients" if rest else None)
    titles = ["client", "samples", "classes", "entropy", "distance"]
    for title in titles:
        table.add_column(title, justify="right")
    if has_map:
        table.add_column(f"share of classes 0 .. {counts.shape[1] - 1}", no_wrap=True)
    for row, client in zip(shown, per_client(counts).to_dict("records"), strict=False):
        cells: list[Any] = [f"{client[title]:,}" for title in titles[:3]]
        cells += [f"{client[title]:.2f}" if client["samples"] else "" for title in titles[3:]]
        table.add_row(*cells, *([_shades(row)] if has_map else []))
    return table


def _shades(row: NDArray[np.int64]) -> str:
    """A character per class: blank for none, darker with its share of the client's samples."""
    shares = row / max(1, row.sum())
    levels = np.ceil(shares * (len(SHADES) - 1)).astype(int)
    return "".join(SHADES[level] for level in levels)
