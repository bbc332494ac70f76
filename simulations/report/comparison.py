"""Tables and plots of finished runs, for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.table import Table

from simulations.report.text_table import text_table
from simulations.runs.columns import ENERGY_JOULES, PAYLOAD, SENT, VIRTUAL_SECONDS, WEIGHTS, sums
from simulations.runs.files import read_rounds, write_whole, writing
from simulations.runs.results import COMPARISON, ROUNDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLIENT = " Client: mean of clients, each on its own held-out samples, after the last round."
"""Explains the column `client` in a caption."""

COSTS: dict[str, Callable[[pd.DataFrame], pd.Series[float]]] = {
    "MB sent, payload and weights": lambda rounds: rounds[[*SENT]].sum(axis=1).cumsum() / 1e6,
    "round": lambda rounds: rounds["round"],
    "TFLOP of all clients": lambda rounds: rounds["client_flops"].cumsum() / 1e12,
}
"""What accuracy is drawn against, by the name of the axis."""


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
                "client_accuracy": summary.get("client_accuracy"),
                "ratio": summary["ratio"],
                **sums(summary),
            }
        )
    return pd.DataFrame(rows)


def write_comparison(summaries: Mapping[str, dict[str, Any]], folder: Path) -> Path:
    """Write table and figure of runs whose folders, by their names, are in `folder`.

    Returns the figure's file.
    """
    write_whole(folder / COMPARISON, comparison(summaries).to_csv(index=False).encode())
    file = folder / "comparison.svg"
    with writing(file):
        comparison_figure({name: folder / name for name in summaries}).savefig(file)
    return file


def comparison_table(frame: pd.DataFrame, width: int) -> Table:
    """Show what :func:`comparison` returns on a terminal of `width` characters."""
    has_clients = bool(frame["client_accuracy"].notna().any())
    columns = ("final_accuracy", "best_accuracy", *(["client_accuracy"] if has_clients else []))
    rows = [
        [
            row["run"],
            *(_number(row[key], 100, 1) for key in columns),
            _number(sum(row[key] for key in SENT), 1e-6, 1),
            _number(sum(row[key] for key in PAYLOAD), 1e-6, 1),
            _number(row["ratio"], 1, 3),
            _number(sum(row[key] for key in WEIGHTS), 1e-6, 1),
            _number(row["client_flops"], 1e-12, 2),
            _number(row["cpu_seconds"], 1, 0),
        ]
        for row in frame.to_dict("records")
    ]
    has_system = VIRTUAL_SECONDS in frame
    if has_system:
        for row, told in zip(rows, frame.to_dict("records"), strict=True):
            row += [_number(told[VIRTUAL_SECONDS], 1, 1), _number(told[ENERGY_JOULES], 1, 1)]
    caption = (
        "MB = 10^6 bytes, both directions, all clients and rounds: payload (smashed data, labels, "
        "cut gradients) and weights (synchronised heads; fedavg: models). Ratio: of payload to "
        "uncompressed fp32. TFLOP: of all clients."
    )
    accuracies = ["final %", "best %", *(["client %"] if has_clients else [])]
    titles = ["run", *accuracies, "MB", "payload", "ratio", "weights", "TFLOP", "CPU s"]
    if has_system:
        titles += ["virtual s", "J"]
        caption += " Virtual s, J: by the run's system, J of all clients."
    return text_table(
        titles, rows, width, spare=("best %", "CPU s", "ratio"),
        title="Accuracy against bytes", caption=caption + (CLIENT if has_clients else ""),
    )  # fmt: skip


def comparison_figure(folders: Mapping[str, Path]) -> Figure:
    """Return accuracy against bytes sent, against rounds and against client compute."""
    from matplotlib import rc_context

    from simulations.report.canvas import PLAIN, Canvas, named_legend
    from simulations.report.chart import ACCURACY, hidden
    from simulations.report.lines import logarithmic, plot_curve
    from simulations.report.marks import in_a_row

    figure = Canvas(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    marks = in_a_row([*folders])
    tables = [read_rounds(folder / ROUNDS) for folder in folders.values()]
    for axis, (label, cost) in zip(axes, COSTS.items(), strict=True):
        frames = [
            pd.DataFrame({"x": cost(rounds), "mean": 100 * rounds["accuracy"]}) for rounds in tables
        ]
        shown = zip(folders, frames, hidden(frames), strict=True)
        for place, (name, frame, below) in enumerate(shown):
            plot_curve(axis, frame, marks[name], place, below)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    logarithmic([axes[0]])
    axes[0].set_ylabel(ACCURACY)
    with rc_context(PLAIN):
        named_legend(axes[0], axes[0].get_lines(), [*folders], fontsize="small")
    return figure


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None or pd.isna(value) else f"{factor * value:,.{digits}f}"
