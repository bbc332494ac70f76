"""Tables of a report: text for people, numbers for programs, LaTeX for papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from simulations.report.comparison import CLIENT
from simulations.report.finished import FinishedRun
from simulations.report.labels import span
from simulations.report.runs import Configuration, RunCollection
from simulations.report.statistics import LEVEL, Difference, holm, interval, paired
from simulations.runs.columns import SENT, SHOWN, Metric

TOLD = {"round", "accuracy", "client_accuracy", "clients", "ratio"}
"""Columns of rounds.csv that other tables tell of, beside those that add up."""

SENT_TITLE = "all sent, MB"

WITHIN = f"± half of the {100 * LEVEL:.0f} % interval"

LATEX = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "{": r"\{",
    "}": r"\}", "$": r"\$", "±": r"$\pm$", "|": r"\textbar{}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}",
}  # fmt: skip


@dataclass(frozen=True)
class ReportTable:
    """Rows of text, the first cell naming the row, and the numbers behind them."""

    name: str
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: pd.DataFrame

    def latex(self) -> str:
        """Return the table for LaTeX's booktabs."""
        lines = [" & ".join(map(_escaped, cells)) + r" \\" for cells in (self.columns, *self.rows)]
        body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        begin = rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}"
        return "\n".join([begin, *body, r"\end{tabular}", ""])

    def markdown(self) -> str:
        """Return the table for Markdown."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        rows = (self.columns, rule, *self.rows)
        return "\n".join(
            f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows
        )


def results_table(collection: RunCollection) -> ReportTable:
    """Accuracy, and what it cost, by configuration."""
    rows, data = [], []
    accuracies, means = _accuracies(collection), _means(collection)
    for one in collection.configurations:
        cells, numbers = [one.label, str(len(one.runs))], {"seeds": float(len(one.runs))}
        for key, accuracy in accuracies.items():
            mean, half = interval([100 * accuracy(run) for run in one.runs])
            cells.append(with_interval(mean, half))
            numbers |= {f"{key} accuracy, %": mean, f"{key} accuracy, half interval": half}
        rounds = sorted(len(run.rounds) for run in one.runs)
        cells += [span([str(count) for count in rounds]), _number(_sent(one.runs), ",.1f")]
        numbers |= {"rounds": interval(rounds)[0], SENT_TITLE: _sent(one.runs)}
        for metric in means:
            mean = metric.factor * interval(one.values(metric.name))[0]
            cells.append(_number(mean, metric.form))
            numbers[metric.heading] = mean
        rows.append(cells)
        data.append({"configuration": one.label, **numbers})
    caption = (
        f"Accuracy on the test set: mean {WITHIN} over seeds (Student's t); without ± there is "
        "one seed and no interval. Best: over the rounds of each run, chosen on the test set and "
        f"so optimistic.{CLIENT if 'client' in accuracies else ''} The rest are means over seeds "
        "of what all clients and rounds took together. Payload: smashed data up, cut gradients "
        "down. Weights: synchronised heads, of fedavg models. "
        "Ratio: payload over uncompressed fp32. MB are 10⁶ bytes."
    )
    columns = ["configuration", "seeds", *(f"{key}, %" for key in accuracies)]
    columns += ["rounds", SENT_TITLE, *(metric.heading for metric in means)]
    return ReportTable("results", "Results", caption, columns, rows, pd.DataFrame(data))


def differences_table(
    collection: RunCollection, baselines: Mapping[str, Configuration], remark: str = ""
) -> ReportTable | None:
    """Final accuracy less that of the baseline, over common seeds; None without a second one.

    `remark` says how the baseline was chosen.
    """
    compared = [
        (one, baselines[one.task], _difference(one, baselines[one.task]))
        for one in collection.configurations
        if one.task in baselines and baselines[one.task] is not one
    ]
    if not compared:
        return None
    adjusted = holm([difference.p for _, _, difference in compared])
    bases = {base.label for _, base, _ in compared}
    against = f" ({next(iter(bases))})" if len(bases) == 1 else ""
    rows, data = [], []
    for (one, base, found), p_holm in zip(compared, adjusted, strict=True):
        told = [_difference_text(found), _p(found.p), _p(p_holm)]
        names = [one.label] if len(bases) == 1 else [one.label, base.label]
        rows.append([*names, str(len(found.seeds)), *told])
        data.append(
            {
                "configuration": one.label,
                "baseline": base.label,
                "seeds": len(found.seeds),
                "difference, points": found.mean,
                "half interval": found.half,
                "p": found.p,
                "p (Holm)": p_holm,
            }
        )
    names = ["configuration"] if len(bases) == 1 else ["configuration", "baseline"]
    columns = [*names, "common seeds", "difference, points", "p", "p (Holm)"]
    tests = sum(not math.isnan(p) for p in adjusted)
    caption = (
        f"Final accuracy less the baseline's{against} with the same seed: mean "
        f"{WITHIN}, two-sided paired t-test, and p after Holm's correction for the "
        f"{tests} test{'s' * (tests != 1)} of this table. {_few_seeds(compared)}"
        f"{f'The baseline is {remark}.' if remark else ''}"
    )
    return ReportTable(
        "differences", "Differences", caption.strip(), columns, rows, pd.DataFrame(data)
    )


def metrics_table(collection: RunCollection) -> ReportTable | None:
    """Whatever else the rounds recorded and does not add up, after the last one."""
    found: dict[str, Metric] = {}
    for run in collection.runs:
        numeric = run.rounds.select_dtypes("number").dropna(axis="columns", how="all")
        for name in map(str, numeric):
            metric = collection.metrics.get(name, Metric(name, name.replace("_", " ")))
            if name not in TOLD and not metric.adds_up:
                found[name] = metric
    if not found:
        return None
    rows, data = [], []
    for one in collection.configurations:
        cells: list[str] = [one.label]
        numbers: dict[str, float] = {}
        for name, metric in found.items():
            mean, half = interval([metric.factor * _last(run.rounds, name) for run in one.runs])
            cells.append(with_interval(mean, half, metric.form))
            numbers |= {metric.heading: mean, f"{metric.heading}, half interval": half}
        rows.append(cells)
        data.append({"configuration": one.label, **numbers})
    caption = f"After the last round: mean {WITHIN} over seeds."
    columns = ["configuration", *(metric.heading for metric in found.values())]
    return ReportTable("metrics", "More metrics", caption, columns, rows, pd.DataFrame(data))


def runs_table(collection: RunCollection) -> ReportTable:
    """Every run that counts: where it lies, and clients that it lost."""
    rows = []
    for one in collection.configurations:
        for run in one.runs:
            dropped = run.rounds["dropped"].sum() if "dropped" in run.rounds else 0
            final = _number(100 * run.total("final_accuracy"), ".1f")
            counts = [str(run.seed), str(len(run.rounds)), f"{dropped:,.0f}"]
            sent, ratio = _number(_sent([run]), ",.1f"), _number(run.total("ratio"), ".3f")
            rows.append([run.name, one.label, *counts, final, sent, ratio])
    columns = ["run", "configuration", "seed", "rounds", "clients dropped", "final, %"]
    columns += [SENT_TITLE, "ratio"]
    caption = "Clients dropped: summed over rounds."
    labels = [one.whole_label for one in collection.configurations for _ in one.runs]
    data = pd.DataFrame(rows, columns=columns).assign(**{"all that differs": labels})
    return ReportTable("runs", "Runs", caption, columns, rows, data)


def _accuracies(collection: RunCollection) -> dict[str, Callable[[FinishedRun], float]]:
    """Say how to read each kind of accuracy; that of clients only where some were tested."""
    found: dict[str, Callable[[FinishedRun], float]] = {
        key: partial(FinishedRun.total, key=f"{key}_accuracy") for key in ("final", "best")
    }

    def of_clients(run: FinishedRun) -> float:
        return _last(run.rounds, "client_accuracy")

    if not all(math.isnan(of_clients(run)) for run in collection.runs):
        found["client"] = of_clients
    return found


def _means(collection: RunCollection) -> list[Metric]:
    """Return what the table of results tells beside accuracies: costs, and the ratio."""
    known = collection.metrics.values()
    return [one for one in known if one.name == "ratio" or (one.adds_up and one.is_cost)]


def _difference(one: Configuration, base: Configuration) -> Difference:
    mine, its = ({s: 100 * v for s, v in c.by_seed("final_accuracy").items()} for c in (one, base))
    return paired(mine, its)


def _sent(runs: Sequence[FinishedRun]) -> float:
    """MB of payload and weights in both directions, mean over runs; nan if one does not know."""
    totals = [sum(run.total(key) for key in SENT) for run in runs]
    return SHOWN["bytes"][1] * sum(totals) / len(totals)


def _few_seeds(compared: Sequence[tuple[Any, Any, Difference]]) -> str:
    told = {len(difference.seeds) for _, _, difference in compared}
    one = "One common seed gives no interval and no test. " if 1 in told else ""
    return one + ("Without a common seed there is no difference. " if 0 in told else "")


def _difference_text(found: Difference) -> str:
    if found.is_same and len(found.seeds) > 1:
        return "0, equal in every seed"
    return with_interval(found.mean, found.half, "+.1f")


def with_interval(mean: float, half: float, form: str = ".1f") -> str:
    """Return ``mean ± half``, the mean alone without an interval, - without a mean."""
    shown = _number(mean, form)
    return shown if math.isnan(half) else f"{shown} ± {half:{form.lstrip('+')}}"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _last(rounds: pd.DataFrame, key: str) -> float:
    known = rounds[key].dropna() if key in rounds else pd.Series(dtype=float)
    return float(known.iloc[-1]) if len(known) else math.nan


def _escaped(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)
