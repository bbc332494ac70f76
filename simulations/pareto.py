"""Accuracy against what was spent: codecs under equal rounds, bytes and client compute."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.box import SIMPLE
from rich.table import Table

from fl_split.specs import SpecError, sentence
from simulations.cells import holds_run, is_complete
from simulations.results import ROUNDS
from strategies.budget import Bytes, ClientFlops, Limited, Nominal, Rounds

Limit = Annotated[float, Field(gt=0)]

LIMITED: dict[str, Callable[[Any], Limited]] = {
    "rounds": Rounds,
    "bytes": Bytes,
    "client_flops": ClientFlops,
    "nominal": Nominal,
}
"""Budgets under which codecs can be compared, by their key in a configuration."""

FRONT = "pareto.csv"


class Entry(BaseModel):
    """One codec of a study; ``{ratio}`` in its specs is replaced by each ratio."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    codec: str
    name: str = ""
    downlink: str = "identity()"
    ratios: list[int | float] = []

    def cells(self, ratios: list[int | float]) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield label and specs, one per ratio, or one if the specs have no ``{ratio}``."""
        specs = {"codec": self.codec, "downlink": self.downlink}
        has_ratio = any("{ratio}" in spec for spec in specs.values())
        for ratio in (self.ratios or ratios) if has_ratio else [None]:
            filled = {k: s.replace("{ratio}", str(ratio)) for k, s in specs.items()}
            name = self.name or self.codec.partition("(")[0]
            yield (name if ratio is None else f"{name}-{ratio}"), filled


class Study(BaseModel):
    """The ``[pareto]`` table of a configuration: what to compare, up to which budgets."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    codecs: Annotated[list[Entry], Field(min_length=1)]
    ratios: list[int | float] = [0.5, 0.2, 0.1, 0.05]
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2]
    rounds: Annotated[int, Field(ge=1)] | None = None
    bytes: Limit | None = None
    client_flops: Limit | None = None
    nominal: Limit | None = None
    max_rounds: Annotated[int, Field(ge=1)]

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Study:
        """Check a table; SpecError names the key."""
        try:
            study = cls(**values)
        except ValidationError as error:
            raise SpecError(f"pareto: {sentence(error)}") from None
        if not study.budgets():
            raise SpecError(f"pareto: give a limit for at least one of {', '.join(LIMITED)}")
        return study

    def cells(self) -> dict[str, dict[str, Any]]:
        """Return settings by cell; raise SpecError if two cells have one name."""
        found: dict[str, dict[str, Any]] = {}
        for entry in self.codecs:
            for label, specs in entry.cells(self.ratios):
                for seed in self.seeds:
                    name = f"{label}-seed{seed}"
                    if name in found:
                        raise SpecError(f"pareto: two codecs are called {label!r}; give a name")
                    found[name] = {**specs, "seed": seed, "rounds": self.max_rounds}
        return found

    def budgets(self) -> dict[str, Limited]:
        """Those that are given, by name."""
        limits = {name: getattr(self, name) for name in LIMITED}
        return {name: LIMITED[name](limit) for name, limit in limits.items() if limit}

    def is_spent(self, totals: Mapping[str, Any]) -> bool:
        """Tell from sums over all rounds whether a cell has used up all budgets."""
        return all(budget.is_spent(totals) for budget in self.budgets().values())

    def covers(self, rounds: pd.DataFrame) -> bool:
        """Tell whether a run of these rounds is long enough for this study."""
        totals: dict[str, Any] = {**rounds.sum(numeric_only=True), "rounds": len(rounds)}
        return len(rounds) >= self.max_rounds or self.is_spent(totals)


@dataclass(frozen=True)
class Cell:
    """A finished run of a study."""

    label: str
    settings: Mapping[str, Any]
    folder: Path


def is_finished(folder: Path, settings: Mapping[str, Any], study: Study) -> bool:
    """Tell whether `folder` holds the finished run of a cell; clear one that was stopped.

    Raises
    ------
    SpecError
        It holds a run of another experiment.
    """
    if not holds_run(folder, settings):
        return False
    if is_complete(folder) and study.covers(pd.read_csv(folder / ROUNDS)):
        return True
    shutil.rmtree(folder)
    return False


def front(cells: list[Cell], budgets: Mapping[str, Limited]) -> pd.DataFrame:
    """One row per cell and budget: the accuracy when it was used up.

    That is the accuracy after the last round that is wholly paid for; before the first one
    there is none. `reached` is false for a run that ended, or failed, with budget left.
    """
    rows = []
    for cell in cells:
        rounds = pd.read_csv(cell.folder / ROUNDS).assign(rounds=1)
        sent = rounds[["payload_bytes_up", "payload_bytes_down"]].sum().sum()
        for name, budget in budgets.items():
            spent = budget.spent(rounds).cumsum()
            paid = rounds[budget.pays(spent)]
            rows.append(
                {
                    "codec": cell.label,
                    "spec": cell.settings["codec"],
                    "downlink": cell.settings["downlink"],
                    "seed": cell.settings["seed"],
                    "ratio": sent / (2 * rounds["smashed_bytes"].sum()) if sent else math.nan,
                    "budget": name,
                    "limit": budget.limit,
                    "reached": bool(budget.uses_up(spent).any()),
                    "rounds": len(paid),
                    "accuracy": paid["accuracy"].iloc[-1] if len(paid) else math.nan,
                }
            )
    return pd.DataFrame(rows)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds, by codec and budget, in the order of the study."""
    keys = ["codec", "budget", "limit"]
    groups = frame.groupby(keys, sort=False)
    found = groups.agg(
        ratio=("ratio", "mean"),
        rounds=("rounds", "mean"),
        reached=("reached", "all"),
        mean=("accuracy", "mean"),
        spread=("accuracy", "std"),
        seeds=("seed", "count"),
    )
    return found.reset_index()


def table(frame: pd.DataFrame) -> Table:
    """Show the study on a terminal: accuracies under each budget."""
    found = summary(frame)
    shown = Table(
        title="Accuracy, %, when the budget is used up",
        caption="Mean ± standard deviation over seeds. Ratio: payload bytes, both directions, "
        "over uncompressed fp32. *: some run ended before the budget was used up.",
        box=SIMPLE,
    )
    shown.add_column("codec", no_wrap=True)
    shown.add_column("ratio", justify="right")
    budgets = list(found["budget"].unique())
    for budget in budgets:
        shown.add_column(f"equal {budget.replace('_', ' ')}", justify="right")
    for codec, rows in found.groupby("codec", sort=False):
        by_budget = rows.set_index("budget")
        cells = [_accuracy(by_budget.loc[budget]) for budget in budgets]
        shown.add_row(str(codec), f"{rows['ratio'].mean():.3f}", *cells)
    return shown


def _accuracy(row: Any) -> str:
    if pd.isna(row["mean"]):
        return "-"
    spread = "" if pd.isna(row["spread"]) else f" ± {100 * row['spread']:.1f}"
    return f"{100 * row['mean']:.1f}{spread}{'' if row['reached'] else '*'}"


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Draw accuracy against the measured ratio, a panel per budget, error bars over seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter

    found = summary(frame)
    found["family"] = found["codec"].str.replace(r"-[0-9.e-]+$", "", regex=True)
    budgets = list(found["budget"].unique())
    figure = Figure(figsize=(2 + 3.7 * len(budgets), 4.2), layout="constrained")
    axes = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    markers = "osD^vP*Xhd<>p8"
    for axis, budget in zip(axes, budgets, strict=True):
        part = found[found["budget"] == budget]
        for number, (family, rows) in enumerate(part.groupby("family", sort=False)):
            ordered = rows.sort_values("ratio")
            axis.errorbar(
                ordered["ratio"], 100 * ordered["mean"], yerr=100 * ordered["spread"].fillna(0),
                label=family, marker=markers[number % len(markers)], capsize=2, lw=1, ms=5,
            )  # fmt: skip
        axis.set_xscale("log")
        for subset in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            subset(FormatStrFormatter("%g"))
        axis.set_title(f"equal {budget.replace('_', ' ')}: {part['limit'].iloc[0]:,.3g}")
        axis.set_xlabel("payload bytes over uncompressed")
        axis.tick_params(axis="x", which="both", labelsize="small", rotation=45)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy, %")
    axes[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path)
