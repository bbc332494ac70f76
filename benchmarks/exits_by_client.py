"""Which clients' images leave early: held-out rows of each client against the skew of its labels.

python benchmarks/exits_by_client.py FOLDER ... [--tau T] [--csv FILE] [--json FILE] [--tiny]

A FOLDER is a finished run with exits and a `holdout`, or holds such runs, as that of a sweep does.
The rows that a client holds out leave at the first exit whose largest probability is `tau` or
more, or are sent, as in `fl-split infer -p "threshold(tau=0.8)"`. A row of the CSV file has a
client of a run: its training rows and their label entropy in bits, its held-out rows, the share of
these that leaves, the accuracy of those that leave and of all, the mean number of the exit where
they leave, and the run's accuracy on test images at the first exit and at the server. A client
that holds nothing out has no shares; it is in the file and not in the correlations. --tiny sees
whether it runs: it trains two tiny runs and takes no folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from finished_runs import arguments, measured, write_json
from rich.console import Console
from rich.table import Table
from scipy.stats import norm

import fl_split as fs
from fl_split.specs import shortened
from simulations.data.partitioners import PARTITIONS
from simulations.data.statistics import count, per_client
from simulations.inference.inference import road
from simulations.inference.policies import Threshold
from simulations.inference.served import serve
from simulations.inference.trained import load
from simulations.inference.ways import ways_of

SMALL: dict[str, Any] = {
    "model": "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)",
    "exits": "plain()",
    "partition": "dirichlet(alpha=1.0)",
    "holdout": 0.2,
    "cut": 1,
    "clients": 4,
    "rounds": 1,
    "local_steps": 1,
    "engine": "inline()",
}


def clients_of(folder: Path, tau: float) -> pd.DataFrame:
    """Return a row for each client of a run: its labels, and what becomes of its held-out rows."""
    trained = load(folder)
    experiment, train = trained.experiment, trained.setup.train
    rows, owner = trained.held_out
    trained, link = road(trained, None, None, None)
    ways = ways_of(trained, train, rows, link, owner)
    images = serve(ways, Threshold(tau)).images(ways).assign(client=owner)
    images["exit"] = images["left"].str.extract(r"^exit(\d+)$")[0].astype(float)
    skew = per_client(count(train)).set_index("client")
    by_client, leaving = images.groupby("client"), images[images["exit"].notna()].groupby("client")
    run: Any = fs.load(folder)
    last = run.rounds.iloc[-1]
    found = pd.DataFrame(
        {
            "rows": skew["samples"],
            "entropy": skew["entropy"],
            "held_out": by_client.size().reindex(skew.index, fill_value=0),
            "leave": by_client["exit"].agg(lambda exits: exits.notna().mean()),
            "accuracy_leaving": leaving["right"].mean(),
            "accuracy": by_client["right"].mean(),
            "mean_exit": by_client["exit"].mean(),
            "test_exit1": last["accuracy_exit1"],
            "test_server": last["accuracy"],
        }
    )
    partition = shortened(experiment.partition, PARTITIONS)
    of: dict[str, Any] = {"run": folder.name, "seed": experiment.seed, "partition": partition}
    return found.reset_index().assign(**of)[[*of, "client", *found.columns]]


def correlation(clients: pd.DataFrame, kind: str, runs: int = 0) -> tuple[float, float, float]:
    """Return the correlation of entropy and leaving, and its 95 % interval.

    The interval is Fisher's, with the variance of Bonett and Wright (2000) for Spearman's, as if
    clients were independent. With `runs`, the means of so many runs are taken away before, and
    their degrees of freedom with them.
    """
    pair = clients[["entropy", "leave"]]
    if runs:
        pair = pair - pair.groupby(clients["run"]).transform("mean")
    ranked = pair.rank() if kind == "spearman" else pair
    r = float(ranked["entropy"].corr(ranked["leave"]))
    free = len(pair) - max(0, runs - 1) - 3
    variance = (1 + r**2 / 2 if kind == "spearman" else 1) / free if free > 0 else np.nan
    z, far = np.arctanh(r), norm.ppf(0.975) * np.sqrt(variance)
    return r, float(np.tanh(z - far)), float(np.tanh(z + far))


def show(found: pd.DataFrame) -> Table:
    """Return a table: a row for each partition and for all, means and correlations of clients."""
    table = Table(
        "partition", "clients", "entropy, bits", "leave, %", "accuracy of these, %", "exit",
        "Pearson", "Spearman", "Pearson within runs",
        title="means ± standard deviations over clients; correlations of entropy and leaving",
    )  # fmt: skip
    known = found.dropna(subset="leave")
    groups = [*known.groupby("partition", sort=False), ("all", known)]
    for name, clients in groups:
        columns = ("entropy", 1), ("leave", 100), ("accuracy_leaving", 100), ("mean_exit", 1)
        means = [
            f"{scale * clients[key].mean():.2f} ± {scale * clients[key].std():.2f}"
            for key, scale in columns
        ]
        runs = clients["run"].nunique()
        related = [correlation(clients, kind) for kind in ("pearson", "spearman")]
        related.append(correlation(clients, "pearson", runs))
        cells = [f"{r:.2f} [{low:.2f}, {high:.2f}]".replace("[", r"\[") for r, low, high in related]
        table.add_row(str(name), str(len(clients)), *means, *cells)
    return table


def tiny_runs(folder: Path) -> None:
    """Train a run of each of two seeds."""
    for seed in (0, 1):
        fs.run(**SMALL, seed=seed, out=str(folder / f"run{seed}"))


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--tau", type=float, default=0.8, help="confidence at which images leave")
    options = parser.parse_args()
    found = measured(
        parser, options, tiny_runs, lambda run: clients_of(run, options.tau).to_dict("records")
    )
    Console().print(show(found))
    if options.csv:
        found.to_csv(options.csv, index=False)
    write_json(found, options.json)


if __name__ == "__main__":
    main()
