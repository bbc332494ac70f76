"""Cost against size: CPU and wall seconds of a round from ten clients to a thousand.

python benchmarks/scaling.py [--plot FILE] [--json FILE] [--engine SPEC] [--tiny]

Every client takes two steps on batches of 4 (ViT, d=64, 2+4 blocks, 65 tokens, `parallel`).
A line through the origin is what to hope for: nothing but the arithmetic grows.
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
from work import STEPS, Work, apart, simulated

from strategies.server.threads import available_cores

matplotlib.use("Agg")
from matplotlib import pyplot

CLIENTS, TINY = (10, 30, 100, 300, 1000), (2,)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="draw the curve there (svg, png)")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--engine", default="ray()")
    parser.add_argument("--tiny", action="store_true", help="see whether it runs; inline")
    options = parser.parse_args()
    if options.tiny:
        options.engine = "inline()"
    cores = available_cores()
    print(f"{platform.platform()}, {cores} cores, torch {torch.__version__}, {options.engine}")
    table = Table("clients", "client-steps", "CPU s", "wall s", "CPU ms per client-step")
    rows = []
    for clients in TINY if options.tiny else CLIENTS:
        rounds = 1 if options.tiny else max(1, 100 // clients)
        cpu, wall = apart(simulated, Work("", clients, 4), rounds, options.engine)
        steps = clients * STEPS
        rows.append({"clients": clients, "client_steps": steps, "cpu": cpu, "wall": wall})
        cells = (f"{cpu:.2f}", f"{wall:.2f}", f"{1000 * cpu / steps:.1f}")
        table.add_row(str(clients), str(steps), *cells)
    Console().print(table)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")
    if options.plot:
        figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
        for key in ("cpu", "wall"):
            axes.loglog(
                [r["client_steps"] for r in rows], [r[key] for r in rows], "o-", label=f"{key} s"
            )
        axes.set(xlabel="client-steps in a round", ylabel="seconds", title=options.engine)
        axes.legend()
        figure.savefig(options.plot)


if __name__ == "__main__":
    main()
