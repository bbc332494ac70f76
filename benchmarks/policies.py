"""What policies and their controls make of the test images of several finished runs.

python benchmarks/policies.py FOLDER ... -p SPEC ... [--rates R ...] [--codecs SPEC ...]
    [--delay-price X] [--label NAME] [--csv FILE] [--json FILE] [--tiny]

A FOLDER is a run, or holds runs, as that of a comparison does. Each run does what `fl-split infer`
does with these options. A row is one of its table, without those of image files, and has the seed
of the run and its folder, or NAME. Rows go behind those that the CSV file holds. --tiny sees
whether it runs: it trains a tiny run and takes no folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from finished_runs import add_to_csv, arguments, measured, write_json
from rich.console import Console
from rich.table import Table

import fl_split as fs
from simulations.runs.checkpoint import read_experiment

SMALL: dict[str, Any] = {
    "model": "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)",
    "tokens": "residual_gate(after=1)",
    "codec": "jscc(ratio=0.5, ratios=[0.5, 0.25])",
    "channel": "awgn(snr_db='cell')",
    "system": "cell(fading=True)",
    "cut": 1,
    "clients": 2,
    "holdout": 0.2,
    "rounds": 1,
    "local_steps": 1,
    "engine": "inline()",
}
TINY = {
    "policies": ["lyapunov(rate=1.0, slots=10)"],
    "rates": [0.1, 1.0],
    "codecs": ["jscc(ratio=0.5, ratios=[0.5, 0.25])", "jscc(ratio=0.25, ratios=[0.5, 0.25])"],
}
KEPT = (
    *("policy", "accuracy", "return", "mixture", "sent", "bytes_up", "channel_uses"),
    *("uses_per_number", "device_flops", "server_flops", "seconds", "joules"),
)


def rows_of(folder: Path, options: dict[str, Any], label: str | None) -> pd.DataFrame:
    """Let one run infer."""
    experiment = read_experiment(folder, {})
    table = fs.infer(folder, **options).table
    table = table[~table["policy"].str.startswith(("JPEG", "WEBP"))]
    known = {
        "run": label or folder.name,
        "seed": experiment.seed,
        "delay_price": options.get("delay_price"),
    }
    return table[[*KEPT]].assign(**known)[[*known, *KEPT]]


def show(found: pd.DataFrame) -> Table:
    """Return a table: a row per policy of each run, means and standard deviations over seeds."""
    titles = {"accuracy": "accuracy, %", "return": "return, %"}
    titles = {key: title for key, title in titles.items() if found[key].notna().any()}
    table = Table("run", "policy", *titles.values(), "bytes", "k/n", "s")
    for names, rows in found.groupby(["run", "policy"], sort=False):
        right = [100 * rows[key] for key in titles]
        spread = [f"{one.mean():.1f} ± {one.std() if len(one) > 1 else 0:.1f}" for one in right]
        means = [f"{rows[key].mean():.4g}" for key in ("bytes_up", "uses_per_number", "seconds")]
        table.add_row(*map(str, names), *spread, *means)
    return table


def main() -> None:
    """Infer and print."""
    parser = arguments(__doc__, csv="add the rows to that file")
    parser.add_argument("-p", "--policies", nargs="+", metavar="SPEC", default=["all_sent()"])
    parser.add_argument("--rates", nargs="+", type=float, default=[], metavar="R")
    parser.add_argument("--codecs", nargs="+", default=[], metavar="SPEC")
    parser.add_argument("--delay-price", type=float, metavar="X")
    parser.add_argument("--label", metavar="NAME", help="of these rows, instead of the folder")
    given = parser.parse_args()
    options = {key: getattr(given, key) for key in ("policies", "rates", "codecs", "delay_price")}
    options |= TINY if given.tiny else {}
    found = measured(
        parser,
        given,
        lambda folder: fs.run(**SMALL, out=str(folder / "run")),
        lambda run: rows_of(run, options, given.label).to_dict("records"),
    )
    Console().print(show(found))
    add_to_csv(found, given.csv)
    write_json(found, given.json)


if __name__ == "__main__":
    main()
