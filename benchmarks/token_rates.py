"""Accuracy of finished runs at other rates of their selection of tokens, without training again.

python benchmarks/token_rates.py FOLDER ... [--rates R ...] [--csv FILE] [--json FILE] [--tiny]

A FOLDER is a run with the key `tokens`, or holds such runs, as that of a sweep does. Each model is
tested on its test images at every rate: ceil(rate P) of P patches go on. A row has the run's own
`tokens`, its seed, the rate of the test, the patches that are kept, and the accuracy. --tiny sees
whether it runs: it trains a tiny run of each gated selection, and takes no folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

import fl_split as fs
from fl_split.exchange.whole import predict
from fl_split.tokens import AllTokens
from simulations.runs.evaluator import EVALUATION_ROWS
from simulations.runs.results import SUMMARY
from simulations.runs.setup import prepare

RATES = [0.1, 0.25, 0.5, 0.75, 1.0]
SMALL: dict[str, Any] = {
    "model": "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)",
    "cut": 1,
    "clients": 2,
    "rounds": 1,
    "local_steps": 1,
    "engine": "inline()",
}


def runs_in(folder: Path) -> list[Path]:
    """Return folders of runs: `folder` itself, or all below it."""
    return sorted(file.parent for file in folder.rglob(SUMMARY))


def rows_of(folder: Path, rates: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Test one run at each rate; nothing where it lets all tokens go on."""
    run: Any = fs.load(folder)
    if isinstance(run.experiment.parts.tokens, AllTokens):
        return
    test, head, tail = prepare(run.experiment).test, run.model.head, run.model.tail
    starts = range(0, len(test.labels), EVALUATION_ROWS)
    batches = [np.arange(len(test.labels))[start : start + EVALUATION_ROWS] for start in starts]
    for rate in rates:
        other, right = head.with_rate(rate), 0
        for rows in batches:
            pixels, labels = test.batch(rows)
            right += int((predict(other, tail, pixels).argmax(dim=1) == labels).sum())
        yield {
            "tokens": run.experiment.tokens,
            "seed": run.experiment.seed,
            "rate": rate,
            "kept": other.most_sent - head.num_read,
            "patches": head.smashed_shape[0] - head.num_read,
            "accuracy": right / len(test.labels),
        }


def tiny_runs(folder: Path) -> None:
    """Train a run of each gated selection, for a moment."""
    for name in ("residual_gate", "dual_gate"):
        fs.run(**SMALL, tokens=f"{name}()", out=str(folder / name))


def show(found: pd.DataFrame) -> Table:
    """Return a table: a line for each selection, a column for each rate, means over seeds."""
    rates = sorted(found["rate"].unique())
    table = Table("tokens", *(f"{rate:g}" for rate in rates), title="accuracy in %, at the rate")
    for tokens, rows in found.groupby("tokens"):
        by_rate = 100 * rows.groupby("rate")["accuracy"].agg(["mean", "std"])
        cells = [f"{by_rate['mean'][r]:.1f} ± {by_rate['std'].fillna(0)[r]:.1f}" for r in rates]
        table.add_row(str(tokens), *cells)
    return table


def main() -> None:
    """Test and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--csv", metavar="FILE", help="write the rows there")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--tiny", action="store_true", help="see whether it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as made:
        if options.tiny:
            tiny_runs(Path(made))
        folders = [Path(made)] if options.tiny else options.folders
        runs = [run for folder in folders for run in runs_in(folder)]
        rows = [row for run in runs for row in rows_of(run, options.rates)]
    if not rows:
        parser.error("no run with the key tokens; give folders of such runs")
    found = pd.DataFrame(rows)
    Console().print(show(found))
    if options.csv:
        found.to_csv(options.csv, index=False)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
