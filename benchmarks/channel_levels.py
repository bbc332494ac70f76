"""Accuracy, bytes and seconds of finished runs over other channels, without training again.

python benchmarks/channel_levels.py FOLDER ... --channels SPEC ... [--codec SPEC]
    [--system SPEC] [--csv FILE] [--json FILE] [--tiny]

A FOLDER is a run, or holds runs, as that of a sweep does. Each run serves its test images one by
one over every channel, as `fl-split infer` does where all images are sent. A channel that cannot
carry a codec is left out for it. A row has codec and channel of the training, the seed, the codec
and channel of the test, accuracy, and means over images of bytes up and, with a system, seconds.
--codec tests with another codec than the runs'. --tiny sees whether it runs: it trains a tiny run
and takes no folder.
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
from simulations.inference.inference import road
from simulations.inference.latency import Latency
from simulations.inference.policy import AllSent
from simulations.inference.served import serve
from simulations.inference.trained import load
from simulations.inference.ways import ways_of
from simulations.runs.results import SUMMARY
from simulations.system.system import parse_system

SMALL: dict[str, Any] = {
    "model": "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)",
    "codec": "jscc()",
    "cut": 1,
    "clients": 2,
    "rounds": 1,
    "local_steps": 1,
    "engine": "inline()",
}


def rows_of(
    folder: Path, channels: Sequence[str], codec: str | None, system: str | None
) -> Iterator[dict[str, Any]]:
    """Serve the test images of one run over each channel."""
    trained = load(folder)
    experiment = trained.experiment
    found = parse_system(system) if system else None
    latency = Latency.of_system(found, experiment) if found else None
    for channel in channels:
        try:
            served, link = road(trained, found, codec, channel)
        except ValueError as error:
            if not str(error).startswith("channel:"):
                raise
            continue
        ways = ways_of(served, served.test, np.arange(len(served.test.labels)), link)
        row = serve(ways, AllSent(), latency).summary()
        yield {
            "trained_codec": experiment.codec,
            "trained_channel": experiment.channel,
            "seed": experiment.seed,
            "codec": codec or experiment.codec,
            "channel": channel,
            "accuracy": row["accuracy"],
            "bytes_up": row["bytes_up"],
            "seconds": row["seconds"],
        }


def show(found: pd.DataFrame) -> Table:
    """Return a table: a row for each channel, means and standard deviations over seeds."""
    table = Table("trained", "over", "tested with", "over", "accuracy, %", "bytes", "s")
    keys = ["trained_codec", "trained_channel", "codec", "channel"]
    for names, rows in found.groupby(keys, sort=False):
        right = 100 * rows["accuracy"]
        spread = f"{right.mean():.1f} ± {right.std(ddof=1) if len(right) > 1 else 0:.1f}"
        means = f"{rows['bytes_up'].mean():,.0f}", f"{rows['seconds'].mean():.3g}"
        table.add_row(*map(str, names), spread, *means)
    return table


def main() -> None:
    """Test and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--channels", nargs="+", metavar="SPEC", default=["awgn()", "perfect()"])
    parser.add_argument("--codec", metavar="SPEC")
    parser.add_argument("--system", metavar="SPEC")
    parser.add_argument("--csv", metavar="FILE", help="add the rows to that file")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--tiny", action="store_true", help="see whether it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as made:
        if options.tiny:
            fs.run(**SMALL, out=str(Path(made) / "run"))
        folders = [Path(made)] if options.tiny else options.folders
        runs = [file.parent for folder in folders for file in sorted(folder.rglob(SUMMARY))]
        tested = options.channels, options.codec, options.system
        rows = [row for run in runs for row in rows_of(run, *tested)]
    if not rows:
        parser.error("found no run that can be tested so; give folders of finished runs")
    found = pd.DataFrame(rows)
    Console().print(show(found))
    if options.csv:
        before = [pd.read_csv(options.csv)] if Path(options.csv).exists() else []
        pd.concat([*before, found]).to_csv(options.csv, index=False)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
