"""Tables and plots of finished runs, for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from simulations.results import ROUNDS

BYTES_SENT = ["payload_bytes_up", "payload_bytes_down", "head_bytes_up", "head_bytes_down"]


def comparison(summaries: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    """One row per run: accuracy against what was sent and computed."""
    rows = []
    for name, summary in summaries.items():
        experiment = summary["experiment"]
        rows.append(
            {
                "run": name,
                "strategy": experiment["strategy"],
                "codec": experiment["codec"],
                "seed": summary["seed"],
                "status": summary["status"],
                "rounds": summary["rounds"],
                "final_accuracy": summary["final_accuracy"],
                "best_accuracy": summary["best_accuracy"],
                "ratio": summary["ratio"],
                **{key: summary[key] for key in BYTES_SENT},
                "wire_bytes": summary["wire_bytes_up"] + summary["wire_bytes_down"],
                "client_steps": summary["client_steps"],
                "cpu_seconds": summary["cpu_seconds"],
                "wall_seconds": summary["wall_seconds"],
            }
        )
    return pd.DataFrame(rows)


def comparison_table(frame: pd.DataFrame) -> Table:
    """Show what :func:`comparison` returns on a terminal."""
    table = Table(title="Accuracy against bytes", caption="MB = 10^6 bytes, all clients, all rounds")
    table.add_column("run")
    for title in ("final acc.", "best", "payload up", "payload down", "ratio", "weights", "total"):
        table.add_column(title, justify="right")
    for title in ("steps", "CPU s"):
        table.add_column(title, justify="right")
    for row in frame.to_dict("records"):
        weights = row["head_bytes_up"] + row["head_bytes_down"]
        payload = row["payload_bytes_up"] + row["payload_bytes_down"]
        table.add_row(
            row["run"],
            percent(row["final_accuracy"]),
            percent(row["best_accuracy"]),
            megabytes(row["payload_bytes_up"]),
            megabytes(row["payload_bytes_down"]),
            "-" if pd.isna(row["ratio"]) else f"{row['ratio']:.3f}",
            megabytes(weights),
            megabytes(payload + weights),
            f"{row['client_steps']:,}",
            f"{row['cpu_seconds']:.0f}",
        )
    return table


def plot(folders: Mapping[str, Path], path: Path) -> None:
    """Draw accuracy against rounds, against bytes sent and against client steps into `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for name, folder in folders.items():
        rounds = pd.read_csv(folder / ROUNDS)
        sent = rounds[BYTES_SENT].sum(axis=1).cumsum() / 1e6
        for axis, x in zip(axes, (rounds["round"], sent, rounds["client_steps"].cumsum())):
            axis.plot(x, 100 * rounds["accuracy"], label=name)
    for axis, label in zip(axes, ("round", "MB sent, payload and weights", "client steps")):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[1].set_xscale("log")
    axes[0].set_ylabel("test accuracy, %")
    axes[0].legend(fontsize="small")
    figure.savefig(path)


def percent(share: float | None) -> str:
    """Format a share as per cent."""
    return "-" if share is None or pd.isna(share) else f"{100 * share:.1f} %"


def megabytes(count: float) -> str:
    """Format a number of bytes in MB."""
    return f"{count / 1e6:,.1f} MB"
