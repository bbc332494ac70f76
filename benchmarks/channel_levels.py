"""Accuracy, bytes and seconds of finished runs over other channels, without training again.

python benchmarks/channel_levels.py FOLDER ... --channels SPEC ... [--codecs SPEC ...]
    [--systems SPEC ...] [--csv FILE] [--json FILE] [--tiny]

A FOLDER is a run, or holds runs, as that of a sweep does. Each run serves its test images one by
one over every channel, as `fl-split infer` does where all images are sent. A channel that cannot
carry a codec is left out for it. A row has codec and channel of the training, the seed, the codec
and channel of the test, accuracy, and means over images of bytes up, uses of a channel with noise
and, with a system, seconds. --codecs tests with others than the runs' own, --systems times in
several. --tiny sees whether it runs: it trains a tiny run and takes no folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from finished_runs import add_to_csv, arguments, measured, write_json
from rich.console import Console
from rich.table import Table

import fl_split as fs
from simulations.inference.inference import road
from simulations.inference.latency import Latency
from simulations.inference.policy import AllSent
from simulations.inference.served import serve
from simulations.inference.trained import Trained, load
from simulations.inference.ways import Ways, ways_of
from simulations.system.system import System, parse_system

SMALL: dict[str, Any] = {
    "model": "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)",
    "codec": "jscc()",
    "cut": 1,
    "clients": 2,
    "rounds": 1,
    "local_steps": 1,
    "engine": "inline()",
}
MEANS = ("bytes_up", "channel_uses", "seconds")


def rows_of(
    folder: Path, channels: Sequence[str], codecs: Sequence[str], systems: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Serve the test images of one run with each codec over each channel, in each system."""
    trained = load(folder)
    experiment = trained.experiment
    known = {
        "trained_codec": experiment.codec,
        "trained_channel": experiment.channel,
        "seed": experiment.seed,
    }
    for codec, channel in product(codecs or (None,), channels):
        ways = None
        for system in systems or (None,):
            found = parse_system(system) if system else None
            try:
                ways = _ways(trained, found, codec, channel, ways)
            except ValueError as error:
                if not str(error).startswith("channel:"):
                    raise
                break
            row = serve(ways, AllSent(), Latency.of_system(found, experiment) if found else None)
            tested = {"codec": codec or experiment.codec, "channel": channel, "system": system}
            means = {key: row.summary()[key] for key in ("accuracy", *MEANS)}
            yield {**known, **tested, **means}


def _ways(
    trained: Trained, system: System | None, codec: str | None, channel: str, before: Ways | None
) -> Ways:
    """Return ways of all test images; those `before`, where the system has no part in them."""
    served, link = road(trained, system, codec, channel)
    if before is not None and not link.channel.asks_snr:
        return before
    return ways_of(served, served.test, np.arange(len(served.test.labels)), link)


def show(found: pd.DataFrame) -> Table:
    """Return a table: a row for each channel, means and standard deviations over seeds."""
    titles = "trained", "over", "tested with", "over", "in", "accuracy, %", "bytes", "s"
    table = Table(*titles)
    keys = ["trained_codec", "trained_channel", "codec", "channel", "system"]
    for names, rows in found.groupby(keys, sort=False, dropna=False):
        right = 100 * rows["accuracy"]
        spread = f"{right.mean():.1f} ± {right.std(ddof=1) if len(right) > 1 else 0:.1f}"
        means = f"{rows['bytes_up'].mean():,.0f}", f"{rows['seconds'].mean():.3g}"
        table.add_row(*map(str, names), spread, *means)
    return table


def main() -> None:
    """Test and print."""
    parser = arguments(__doc__, csv="add the rows to that file")
    parser.add_argument("--channels", nargs="+", metavar="SPEC", default=["awgn()", "perfect()"])
    parser.add_argument("--codecs", nargs="+", default=[], metavar="SPEC")
    parser.add_argument("--systems", nargs="+", default=[], metavar="SPEC")
    options = parser.parse_args()
    found = measured(
        parser,
        options,
        lambda folder: fs.run(**SMALL, out=str(folder / "run")),
        lambda run: rows_of(run, options.channels, options.codecs, options.systems),
    )
    Console().print(show(found))
    add_to_csv(found, options.csv)
    write_json(found, options.json)


if __name__ == "__main__":
    main()
