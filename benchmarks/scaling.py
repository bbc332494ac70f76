"""Cost against the number of clients: start, rounds and memory from ten clients to 100,000.

python benchmarks/scaling.py [--partition SPEC] [--plot FILE] [--json FILE] [--engine SPEC] [--tiny]

Made-up 8x8 images, ten by client. Of more than 100 clients 100 take part in a round; each takes
two steps on batches of 4 (ViT, d=16, 1+1 blocks, 5 tokens, `parallel`), so that the arithmetic is
small and hides nothing. Beyond 100 clients rounds should cost the same. The start, from the data
in memory to the end of a first round, grows with the rows that are shared out; the engine itself
has been started before.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.table import Table
from work import STEPS, Work, apart, here, simulated

from strategies.server.threads import available_cores

matplotlib.use("Agg")
from matplotlib import pyplot

CLIENTS, TINY = (10, 100, 1000, 10_000, 100_000), (2,)

ROUNDS, ACTIVE = 10, 100


def made_up(clients: int, partition: str) -> Work:
    """Return the work of a round of so many clients."""
    return Work(
        "", clients, 4, hidden=16, blocks=2, cut=1, fraction=min(1.0, ACTIVE / clients),
        image=8, channels=1, rows=10, partition=partition,
    )  # fmt: skip


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="draw the curve there (svg, png)")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--engine", default="ray()")
    parser.add_argument("--partition", default="dirichlet(alpha=0.3)", metavar="SPEC")
    parser.add_argument("--tiny", action="store_true", help="see whether it runs; inline")
    options = parser.parse_args()
    if options.tiny:
        options.engine = "inline()"
    cores = available_cores()
    print(f"{platform.platform()}, {cores} cores, torch {torch.__version__}, {options.engine}")
    titles = "client-steps", "ready s", "CPU s", "wall s", "CPU ms per client-step", "driver MB"
    table = Table("clients", *titles, caption=options.partition)
    rows = []
    for clients in TINY if options.tiny else CLIENTS:
        work = made_up(clients, options.partition)
        run, rounds = (here, 1) if options.tiny else (apart, ROUNDS)
        found, steps = run(simulated, work, rounds, options.engine), work.active * STEPS
        row = {"clients": clients, "client_steps": steps, **found._asdict()}
        rows.append({**row, "partition": options.partition})
        times = [f"{seconds:.2f}" for seconds in (found.ready, found.cpu, found.wall)]
        step = f"{1000 * found.cpu / steps:.1f}"
        table.add_row(f"{clients:,}", str(steps), *times, step, f"{found.megabytes:,.0f}")
    Console().print(table)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")
    if options.plot:
        figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
        for key in ("ready", "cpu", "wall"):
            axes.loglog([r["clients"] for r in rows], [r[key] for r in rows], "o-", label=key)
        axes.set(xlabel="clients, at most 100 a round", ylabel="seconds", title=options.engine)
        axes.legend()
        figure.savefig(options.plot)


if __name__ == "__main__":
    main()
