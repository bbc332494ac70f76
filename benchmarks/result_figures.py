"""Figures of pages of results, drawn from the CSV files beside them.

python benchmarks/result_figures.py [--only NAME] [--out DIR]

By default all of FIGURES, into docs/results. A line or point is the mean over seeds, a bar reaches
from the lowest seed to the highest; in a scatter each row is a point.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from simulations.report.figures import our_style
from simulations.report.marks import COLOURS, INK, SYMBOLS

Y_AXES = {"return": "return, %", "leave": "leave the device, %"}
RESULTS = Path(__file__).parents[1] / "docs" / "results"


@dataclass(frozen=True)
class Panel:
    """Accuracy, or what `y` says, against column `x` of a CSV file.

    `lines` says by label what is drawn alike: rows in which columns begin so, or with `=` in
    front are so. `is_joined` draws lines; else a line is one point. `bottom` leaves room for the
    legend.
    """

    title: str
    file: str
    x: str
    axis: str
    lines: Mapping[str, Mapping[str, str]]
    y: str = "accuracy"
    is_joined: bool = True
    is_log: bool = False
    bottom: float | None = None
    change: Callable[[pd.DataFrame], pd.DataFrame] = field(default=lambda rows: rows)

    def draw(self, axes: Axes) -> None:
        """Draw all lines."""
        table = self.change(pd.read_csv(RESULTS / self.file))
        for place, (label, where) in enumerate(self.lines.items()):
            rows = _chosen(table, where)
            if rows.empty:
                raise ValueError(f"{self.file}: no rows of {label}: {where}")
            colour = COLOURS[place % len(COLOURS)]
            style = {"marker": [*SYMBOLS][place], "color": "black" if colour == INK else colour}
            self.mark(axes, rows, label=label, ms=4, **style)
        if self.is_log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=self.bottom)
        axes.set_title(self.title)
        axes.set_xlabel(self.axis)
        axes.set_ylabel(Y_AXES.get(self.y, "accuracy, %"))
        axes.legend(fontsize="x-small")

    def mark(self, axes: Axes, rows: pd.DataFrame, **style: Any) -> None:
        """Draw one line, or a point."""
        groups = rows.groupby(self.x if self.is_joined else lambda _: 0, sort=False)
        x, y = groups[self.x], groups[self.y]
        axes.errorbar(
            x.first() if self.is_joined else x.mean(), 100 * y.mean(),
            yerr=100 * np.array([y.mean() - y.min(), y.max() - y.mean()]),
            lw=1.2, elinewidth=0.6, capsize=2, linestyle="-" * self.is_joined, **style,
        )  # fmt: skip


class Scatter(Panel):
    """The same with a point for each row, not for means."""

    def mark(self, axes: Axes, rows: pd.DataFrame, **style: Any) -> None:
        """Draw the points of one label."""
        axes.plot(rows[self.x], 100 * rows[self.y], linestyle="", **style)


def _chosen(rows: pd.DataFrame, where: Mapping[str, str]) -> pd.DataFrame:
    for column, begins in where.items():
        texts = rows[column].astype(str)
        fits = texts == begins[1:] if begins.startswith("=") else texts.str.startswith(begins)
        rows = rows[fits]
    return rows


def _by_exit(rows: pd.DataFrame) -> pd.DataFrame:
    """Give each exit a row."""
    names = {"exit1": "exit 1", "exit2": "exit 2", "exit3": "exit 3", "server": "server"}
    found = rows.melt(["run", "seed"], [*names], "exit", "accuracy")
    return found.assign(exit=found["exit"].map(names))


def _level(rows: pd.DataFrame) -> pd.DataFrame:
    """Name channels by their number; times in cells are another matter."""
    rows = rows[~rows["system"].str.contains("cell", na=False)]
    found = rows["channel"].str.extract(r"=(-?[\d.]+)")[0]
    return rows.assign(level=found.fillna("perfect"))


def _priced(price: float) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda rows: rows[rows["delay_price"] == price]


def _over_noise(rows: pd.DataFrame) -> pd.DataFrame:
    """Give a policy that chooses patches and symbols one place, its mean, in all seeds."""
    rows = rows[(rows["run"] == "noise") & ~rows["policy"].str.contains("shared")]
    uses = rows.groupby("policy")["uses_per_number"].transform("mean")
    return rows.assign(uses_per_number=uses)


def _in_cell(km: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Take rows of the cell at a distance, and give a codec one place, its mean, in all seeds."""

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        rows = rows[rows["system"].str.contains(f"nearest_km={km},", na=False)]
        of_codec = rows.groupby(["trained_codec", "trained_channel", "codec", "channel"])
        rows = rows.assign(ms=1000 * of_codec["seconds"].transform("mean"))
        return rows.sort_values("ms", kind="stable")

    return change


TRAINED = {
    "one dual_gate model": {"trained": "dual_gate(rate=0.5"},
    "norm, plain model": {"trained": "none", "tested": "norm"},
    "random, plain model": {"trained": "none", "tested": "random"},
}
TOKENS = {
    **TRAINED,
    "one residual_gate model": {"trained": "residual_gate(rate=0.5"},
    "norm, trained at 0.25": {"trained": "norm(rate=0.25"},
    "random, trained at 0.1": {"trained": "random(rate=0.1"},
}
REGIMES = {name: {"run": f"={name}"} for name in ("joint", "mixed", "disjoint", "recursive")}
REGIMES["detached"] = {"run": "=no gradient into the trunk"}
LONG = {name: {"run": f"={name}, twice as long"} for name in ("joint", "mixed", "disjoint")}
PARTITIONS = {
    "IID": {"partition": "iid"},
    **{f"Dirichlet({a})": {"partition": f"dirichlet(alpha={a}"} for a in ("0.3", "0.1")},
}
EXPERTS = {name: {"run": name} for name in ("dense", "balanced", "no balance loss")}
NAMES = ("predefined", "random", "neurons", "narrow")
TOLD, UNTOLD = (f"jscc(ratio=0.25, ratios=(), condition={told}" for told in (True, False))
NOISE = {
    "trained under noise, told of it": {"trained_codec": TOLD},
    "not told of it": {"trained_codec": UNTOLD, "trained_channel": "awgn"},
    "trained without noise": {"trained_codec": UNTOLD, "trained_channel": "perfect"},
}
SEMANTIC = {
    told: {"trained_codec": f"semantic(levels=8, ratio=0.125, condition={told}"}
    for told in (True, False)
}
ERRORS = {
    "semantic, told of them": {**SEMANTIC[True], "trained_channel": "bit_errors"},
    "not told of them": {**SEMANTIC[False], "trained_channel": "bit_errors"},
    "trained without errors": {"trained_codec": "semantic", "trained_channel": "perfect"},
    "four bits, at four times the bytes": {"codec": "uniform", "channel": "bit_errors"},
}
FEW = {"trained_codec": "attended(ratio=0.25", "codec": "attended(ratio=0.12"}
SECONDS = {
    "jscc of three ratios": {"trained_codec": "jscc(ratio=0.25, ratios=[0.5"},
    "jscc, not told": NOISE["not told of it"],
    "jscc trained without noise": NOISE["trained without noise"],
    "two tokens in 1, 2, 4 bits": {**FEW, "channel": "perfect"},
    "all in four bits": {"codec": "uniform(bits=4, per", "channel": "perfect"},
    "all in four bits, sent again": {"codec": "uniform(bits=4, per", "channel": "erasure"},
}
NOISY = {
    "lyapunov": {"policy": "lyapunov"},
    "optimum of the table": {"policy": "optimum of the table of lyapunov"},
    "random mixture": {"policy": "random mixture of lyapunov"},
    "best constant": {"policy": "best constant of lyapunov"},
    **{
        f"constants, ratio {ratio}": {"policy": f"jscc(ratio={ratio},"}
        for ratio in (0.5, 0.25, 0.1)
    },
}
LEAVING = {
    name: {"run": "=exits", "policy": begins}
    for name, begins in {
        "fitted margin": "margin", "fitted trend": "trend", "PPO": "ppo", "all sent": "all sent",
        "all local": "all local",
    }.items()
}  # fmt: skip

FIGURES: Mapping[str, Sequence[Panel]] = {
    "tokens": [
        Panel("digits", "study_tokens.csv", "rate", "share of patches", TOKENS),
        Panel("CIFAR-100", "study_cifar100_tokens.csv", "rate", "share of patches", TRAINED),
    ],
    "exits": [
        Panel(title, "study_exits.csv", "exit", "if every image left there", lines, change=_by_exit)
        for title, lines in (("40 rounds", REGIMES), ("80 rounds", LONG))
    ],
    "exits_skew": [
        Scatter(
            "clients of three seeds", "study_exits_skew.csv", "entropy", "label entropy, bits",
            PARTITIONS, y="leave",
        ),
    ],
    "experts": [
        Panel(
            "four clusters of five clients", "study_experts_clusters.csv", "rounds",
            "rounds; equal operations but for 0.5 %", EXPERTS,
        ),
        Panel(
            "ten clusters of two clients", "study_experts.csv", "server_flops",
            "operations of the server", EXPERTS, is_joined=False,
        ),
    ],
    "sparsity": [
        Panel(
            f"{share} of the weights", "study_sparsity.csv", "weight_bytes",
            "bytes of synchronisation",
            {"dense": {"run": "=dense"}, **{name: {"run": f"={name} {share}"} for name in NAMES}},
            y="final_accuracy", is_joined=False,
        )
        for share in ("0.25", "0.1")
    ],
    "jscc": [
        Panel("noise", "study_jscc.csv", "level", "SNR, dB", NOISE, change=_level),
        Panel(
            "bit errors", "study_jscc.csv", "level", "wrong bits, share", ERRORS, bottom=10,
            change=_level,
        ),
        *(
            Panel(
                f"in the same seconds, {snr} dB", "study_jscc.csv", "ms",
                "milliseconds of an image", SECONDS, is_log=True, bottom=bottom,
                change=_in_cell(km),
            )
            for snr, km, bottom in ((-10, "5.023", 0), (10, "1.476", 30))
        ),
    ],
    "control": [
        Panel(
            "fading channel, 0.5 and 1 uses allowed", "study_control.csv", "uses_per_number",
            "channel uses per number of the image", NOISY, is_log=True, change=_over_noise,
        ),
        *(
            Panel(
                f"exits, a second costs {price:g}", "study_control.csv", "bytes_up",
                "bytes of an image", LEAVING, y="return", is_joined=False, change=_priced(price),
            )
            for price in (1.0, 5.0)
        ),
    ],
}  # fmt: skip


def draw(name: str, folder: Path) -> Path:
    """Draw the figure of a page; return its file."""
    panels, path = FIGURES[name], folder / f"{name}.svg"
    with our_style(name):
        across = len(panels) if len(panels) < 4 else 2
        down = len(panels) // across
        figure = Figure(figsize=(4.2 * across, 3.2 * down), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False)
        for panel, axes in zip(panels, grid.flat, strict=True):
            panel.draw(axes)
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Draw figures of pages of results.")
    parser.add_argument("--only", choices=FIGURES, help="one figure")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="of the figures")
    options = parser.parse_args()
    for name in [options.only] if options.only else FIGURES:
        print(draw(name, options.out))


if __name__ == "__main__":
    main()
