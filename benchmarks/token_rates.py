"""Accuracy of finished runs at other rates of their selection of tokens, without training again.

python benchmarks/token_rates.py FOLDER ... [--rates R ...] [--csv FILE] [--json FILE] [--tiny]

A FOLDER is a run, or holds runs, as that of a sweep does. Each model is tested on its test images
at every rate: ceil(rate P) of P patches go on, or those above a threshold. One that was trained
with all tokens is tested with each selection that needs no training. A row has what the run was
trained with, what it is tested with, its seed, the rate, how many patches are kept on average, the
mean of the last gate's masks, and the accuracy. --tiny sees whether it runs: it trains a few tiny
runs, and takes no folder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from finished_runs import arguments, measured, write_json
from rich.console import Console
from rich.table import Table

import fl_split as fs
from fl_split.exchange.whole import Joined, joined
from fl_split.models.beside import Trace
from fl_split.models.cut import Head, Tail
from fl_split.specs import parse, shortened
from fl_split.tokens import TOKENS, insert
from simulations.data.samples import Samples
from simulations.runs.evaluator import EVALUATION_ROWS
from simulations.runs.setup import prepare

RATES = [0.1, 0.25, 0.5, 0.75, 1.0]
UNTRAINED = ["random(after=1)", "norm(after=1)", "cls_attention(after=1)"]
SMALL: dict[str, Any] = {
    "model": "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)",
    "cut": 1,
    "clients": 2,
    "rounds": 1,
    "local_steps": 1,
    "engine": "inline()",
}


def halves_of(run: Any) -> tuple[Head, Tail]:
    """Return head and tail of a finished run."""
    if isinstance(run.model, Joined):
        return run.model.head, run.model.tail
    e = run.experiment
    found: tuple[Head, Tail] = e.parts.model.split(run.model, e.cut, e.end)
    return found


def rows_of(folder: Path, rates: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Test one run at each rate, one with all tokens by each selection that needs no training."""
    run: Any = fs.load(folder)
    experiment, (head, tail) = run.experiment, halves_of(run)
    test = prepare(experiment).test
    tested = {experiment.tokens: head}
    if head.selector is None:
        tested = {spec: copy.deepcopy(head) for spec in UNTRAINED}
        for spec, other in tested.items():
            insert(other, parse(spec, TOKENS), experiment.seed)
    for spec, one in tested.items():
        for rate in rates:
            other = one.with_rate(rate)
            accuracy, kept, mask = tested_with(other, tail, test)
            yield {
                "trained": experiment.tokens,
                "tested": spec,
                "seed": experiment.seed,
                "rate": rate,
                "kept": kept,
                "mask": mask,
                "patches": head.smashed_shape[0] - head.num_read,
                "accuracy": accuracy,
            }


@torch.no_grad()
def tested_with(head: Head, tail: Tail, test: Samples) -> tuple[float, float, float]:
    """Return the share of test images that are right, patches that are kept, and their last mask.

    Both are means; images come in the batches that a run tests in.
    """
    rows, right, kept, mask = np.arange(len(test.labels)), 0, 0, 0.0
    for start in range(0, len(rows), EVALUATION_ROWS):
        pixels, labels = test.batch(rows[start : start + EVALUATION_ROWS])
        trace = Trace()
        right += int((joined(head, tail, pixels, trace).argmax(dim=1) == labels).sum())
        kept += int((torch.zeros_like(labels) + trace.kept).sum())
        mask += float(trace.masks[-1].float().mean(dim=1).sum())
    return right / len(rows), kept / len(rows), mask / len(rows)


def tiny_runs(folder: Path) -> None:
    """Train a run with all tokens, and one of each gated selection, for a moment."""
    for name in ("none", "residual_gate", "dual_gate"):
        fs.run(**SMALL, tokens=f"{name}()", out=str(folder / name))
    by_threshold = "residual_gate(beta=0.0, rate_mode='threshold')"
    fs.run(**SMALL, tokens=by_threshold, out=str(folder / "threshold"))


def show(found: pd.DataFrame) -> Table:
    """Return a table: a column for each rate, means and standard deviations over seeds."""
    rates = sorted(found["rate"].unique())
    table = Table(
        "trained",
        "tested",
        *(f"{rate:g}" for rate in rates),
        title="accuracy in % (patches) at the rate",
    )
    for (trained, tested), rows in found.groupby(["trained", "tested"]):
        by_rate = 100 * rows.groupby("rate")["accuracy"].agg(["mean", "std"])
        kept = rows.groupby("rate")["kept"].mean()
        cells = [
            f"{by_rate['mean'][r]:.1f} ± {by_rate['std'].fillna(0)[r]:.1f} ({kept[r]:.3g})"
            for r in rates
        ]
        names = (shortened(str(spec), TOKENS) for spec in (trained, tested))
        table.add_row(*names, *cells)
    return table


def main() -> None:
    """Test and print."""
    parser = arguments(__doc__)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    options = parser.parse_args()
    found = measured(parser, options, tiny_runs, lambda run: rows_of(run, options.rates))
    Console().print(show(found))
    if options.csv:
        found.to_csv(options.csv, index=False)
    write_json(found, options.json)


if __name__ == "__main__":
    main()
