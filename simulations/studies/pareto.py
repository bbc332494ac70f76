"""Accuracy against what was spent: codecs under equal rounds, bytes and client compute."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from fl_split.spec_errors import SpecError, sentence, unknown
from fl_split.specs import parse
from simulations.report.marks import Mark, in_a_row
from simulations.report.statistics import non_dominated
from simulations.report.within import mean_of_all, percent
from simulations.runs.budget import BUDGETS, Limited, check_budgets
from simulations.runs.columns import COLUMNS, OF_SYSTEM, PAYLOAD, WEIGHTS
from simulations.runs.files import DamagedError, read_rounds, write_whole, writing
from simulations.runs.names import check_apart, check_name
from simulations.runs.results import ROUNDS
from simulations.studies.cells import Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]

LIMITED = {
    "rounds": "rounds({limit!r})",
    "bytes": "bytes({limit!r})",
    "all_bytes": "bytes({limit!r}, of='all')",
    "client_flops": "client_flops({limit!r})",
    "nominal": "nominal({limit!r})",
    "seconds": "seconds({limit!r})",
    "joules": "joules({limit!r})",
}
"""Budgets under which codecs can be compared, by their key in a configuration."""

AXES = ("codec", "downlink", "seed")
"""Keys in which the cells of a study differ."""

FRONT, PLOT = "pareto.csv", "pareto.svg"


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


class ParetoStudy(BaseModel):
    """The ``[pareto]`` table of a configuration: what to compare, up to which budgets."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    codecs: Annotated[list[Entry], Field(min_length=1)]
    ratios: list[int | float] = [0.5, 0.2, 0.1, 0.05]
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2]
    rounds: Annotated[int, Field(ge=1)] | None = None
    bytes: Limit | None = None
    all_bytes: Limit | None = None
    client_flops: Limit | None = None
    nominal: Limit | None = None
    seconds: Limit | None = None
    joules: Limit | None = None
    max_rounds: Annotated[int, Field(ge=1)]

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> ParetoStudy:
        """Check a table; SpecError names the key."""
        for key in values:
            if key not in cls.model_fields:
                raise SpecError(f"pareto: {unknown('key', key, cls.model_fields)}")
        entries = values.get("codecs")
        for entry in entries if isinstance(entries, list) else []:
            if not isinstance(entry, dict):
                raise SpecError(f'pareto: a codec must be a table, {{ codec = "{entry}" }}')
            for key in entry:
                if key not in Entry.model_fields:
                    raise SpecError(f"pareto: codecs: {unknown('key', key, Entry.model_fields)}")
        try:
            study = cls(**values)
        except ValidationError as error:
            raise SpecError(f"pareto: {sentence(error)}") from None
        if not study.budgets():
            raise SpecError(f"pareto: give a limit for at least one of {', '.join(LIMITED)}")
        if study.rounds and study.rounds > study.max_rounds:
            raise SpecError(
                f"pareto: max_rounds={study.max_rounds} ends runs before rounds={study.rounds}"
            )
        return study

    def cells(self, values: Mapping[str, Any]) -> list[Cell]:
        """Make all experiments, `values` hold for every one; each ends with the last budget.

        Raises
        ------
        SpecError
            An experiment that makes no sense, or two cells of one name.
        """
        found: dict[str, Cell] = {}
        base = {**values, "rounds": self.max_rounds}
        until = [*self._limits().values()]
        for entry in self.codecs:
            for label, specs in entry.cells(self.ratios):
                check_name(label, "pareto")
                for seed in self.seeds:
                    name = f"{label}-seed{seed}"
                    if name in found:
                        raise SpecError(f"pareto: two codecs are called {label!r}; give a name")
                    found[name] = Cell.read(name, base, {**specs, "seed": seed}, until)
        for cell in found.values():
            check_budgets(self.budgets().values(), cell.experiment.parts.system)
        check_apart(found)
        return [*found.values()]

    def budgets(self) -> dict[str, Limited]:
        """Those that are given, by name."""
        return {name: parse(spec, BUDGETS) for name, spec in self._limits().items()}

    def _limits(self) -> dict[str, str]:
        limits = {name: getattr(self, name) for name in LIMITED}
        return {name: LIMITED[name].format(limit=x) for name, x in limits.items() if x}


def conclude(cells: Sequence[Cell], budgets: Mapping[str, Limited], folder: Path) -> Table:
    """Write pareto.csv and pareto.svg; return what to show."""
    frame = front(cells, budgets, folder)
    write_whole(folder / FRONT, frame.to_csv(index=False).encode())
    with writing(folder / PLOT):
        pareto_figure(frame).savefig(folder / PLOT)
    return pareto_table(frame)


def front(cells: Sequence[Cell], budgets: Mapping[str, Limited], folder: Path) -> pd.DataFrame:
    """Return one row per cell and budget: the accuracy when the budget was used up.

    It is the accuracy after the last round that the budget pays in full; nan if it pays
    none. Bytes are those of both directions until then. `reached` is false for a run that ended,
    or failed, with budget left.
    """
    rows = []
    for cell in cells:
        rounds = _rounds(folder / cell.name / ROUNDS).assign(rounds=1)
        sent = rounds[[*PAYLOAD]].sum().sum()
        for name, budget in budgets.items():
            paid, is_used_up = budget.within(rounds)
            rows.append(
                {
                    "codec": cell.name.rpartition("-seed")[0],
                    "spec": cell.settings["codec"],
                    "downlink": cell.settings["downlink"],
                    "seed": cell.settings["seed"],
                    "ratio": sent / (2 * rounds["smashed_bytes"].sum()) if sent else math.nan,
                    "budget": name,
                    "limit": budget.limit,
                    "reached": is_used_up,
                    "rounds": len(paid),
                    "dropped": paid["dropped"].sum(),
                    "payload_bytes": paid[[*PAYLOAD]].sum().sum(),
                    "head_bytes": paid[[*WEIGHTS]].sum().sum(),
                    "accuracy": paid["accuracy"].iloc[-1] if len(paid) else math.nan,
                }
            )
    return pd.DataFrame(rows)


def _rounds(path: Path) -> pd.DataFrame:
    """Return the rounds of a cell; none of one that failed before any, or was left out."""
    with suppress(DamagedError):
        if path.exists():
            return read_rounds(path)
    return pd.DataFrame(columns=[*COLUMNS, *(metric.name for metric in OF_SYSTEM)])


def pareto_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds, by codec and budget, in the order of the study."""
    keys = ["codec", "budget", "limit"]
    groups = frame.groupby(keys, sort=False)
    found = groups.agg(
        ratio=("ratio", "mean"),
        rounds=("rounds", "mean"),
        reached=("reached", "all"),
        mean=("accuracy", mean_of_all),
        spread=("accuracy", "std"),
        seeds=("seed", "count"),
    )
    return found.reset_index()


def pareto_table(frame: pd.DataFrame) -> Table:
    """Show the study on a terminal: accuracies under each budget."""
    found = pareto_summary(frame)
    shown = Table(
        title="Accuracy, %, after the last round within the budget",
        caption="Mean ± standard deviation over seeds. Ratio: payload bytes, both directions, "
        "over uncompressed fp32. *: some run ended before the budget was used up. "
        "-: not one round is within it.",
        box=SIMPLE,
    )
    shown.add_column("codec", no_wrap=True)
    shown.add_column("ratio", justify="right")
    budgets = list(found["budget"].unique())
    for budget in budgets:
        shown.add_column(f"equal {budget.replace('_', ' ')}", justify="right")
    for codec, rows in found.groupby("codec", sort=False):
        by_budget = rows.set_index("budget")
        numbers = by_budget.loc[budgets, ["mean", "spread", "reached"]]
        cells = [percent(*row) for row in numbers.itertuples(index=False)]
        shown.add_row(Text(str(codec)), f"{rows['ratio'].mean():.3f}", *cells)
    return shown


def pareto_figure(frame: pd.DataFrame) -> Figure:
    """Return accuracy against the measured ratio, a panel per budget, error bars over seeds.

    Where bytes are not what is equal, a dashed line joins what no other codec beats: by mean
    accuracy, with no more bytes. A hollow point ended before its budget was used up.
    """
    from matplotlib import rc_context

    from simulations.report.canvas import PLAIN, Canvas, named_legend

    found = pareto_summary(frame)
    found["family"] = found["codec"].str.replace(r"-[0-9.e-]+$", "", regex=True)
    marks = in_a_row(list(found["family"]))
    budgets = list(found["budget"].unique())
    figure = Canvas(figsize=(2 + 3.7 * len(budgets), 4.2), layout="constrained")
    axes = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    for axis, budget in zip(axes, budgets, strict=True):
        _panel(axis, budget, found[found["budget"] == budget], marks)
    axes[0].set_ylabel("test accuracy, %")
    fronts = [line for line in axes[0].get_lines() if line.get_label() == "front"]
    handles = [*axes[0].containers, *fronts]
    with rc_context(PLAIN):
        names = [str(handle.get_label()) for handle in handles]
        named_legend(
            axes[-1],
            handles,
            names,
            fontsize="small",
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
        )
    return figure


def _panel(axis: Any, budget: str, part: pd.DataFrame, marks: Mapping[str, Mark]) -> None:
    """Draw all codecs under one budget."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    for family, rows in part.groupby("family", sort=False):
        style = marks[str(family)].matplotlib()
        ordered = rows.sort_values("ratio")
        axis.errorbar(
            ordered["ratio"], 100 * ordered["mean"], yerr=100 * ordered["spread"].fillna(0),
            label=family, capsize=2, lw=1, ms=5, **style,
        )  # fmt: skip
        early = ordered[~ordered["reached"].astype(bool)]
        axis.plot(
            early["ratio"], 100 * early["mean"], linestyle="", marker=style["marker"],
            color=style["color"], mfc="white", ms=5, zorder=3,
        )  # fmt: skip
    if "bytes" not in budget:
        known = part.dropna(subset=["ratio", "mean"]).sort_values("ratio")
        best = known.loc[non_dominated(list(known["ratio"]), list(known["mean"]))]
        axis.plot(best["ratio"], 100 * best["mean"], "k--", lw=1, zorder=0, label="front")
    limit = part["limit"].iloc[0]
    amount = f"{limit / 1e6:,g} MB" if "bytes" in budget else f"{limit:,.3g}"
    title = f"equal {budget.replace('_', ' ')}: {amount}"
    axis.set(xscale="log", title=title, xlabel="counted payload bytes over uncompressed")
    axis.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_formatter=NullFormatter())
    axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.grid(alpha=0.3)
