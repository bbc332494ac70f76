"""What a change costs: the engine of two checkouts in turn, and the ratio of each pair.

python benchmarks/paired.py A B [--pairs N] [--only NAME] [--rounds N] [--json FILE] [--tiny]

A and B are folders. Each run is a fresh process, `benchmarks/engine.py --engine-only` of that
checkout, in the order A B B A A B ..., so that a machine that slows down slows both. Every row
gives the mean of B / A over pairs with its 95 % t-interval: CPU of all processes, and wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from scipy import stats

Costs = dict[str, dict[str, float]]
"""By name of the work: `cpu_s` and `wall_s`, seconds per round."""

SIDES = "AB"


def run(checkout: Path, arguments: Sequence[str]) -> Costs:
    """Run the engine of `checkout` once; RuntimeError with its last lines if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows.json"
        program = str(checkout / "benchmarks" / "engine.py")
        command = [sys.executable, program, "--engine-only", "--json", str(found), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.strip()[-500:]}")
        rows = json.loads(found.read_text())
    return {row["name"]: {key: row[key] for key in ("cpu_s", "wall_s")} for row in rows}


def compare(pairs: Sequence[dict[str, Costs]], name: str, key: str) -> tuple[float, float]:
    """Return the mean of B / A over pairs and the half width of its 95 % t-interval.

    Raises
    ------
    ValueError
        A took no time that can be measured.
    """
    if any(pair["A"][name][key] <= 0 for pair in pairs):
        raise ValueError(f"{name}: {key} of A is 0 in some pair; take more --rounds")
    ratios = [pair["B"][name][key] / pair["A"][name][key] for pair in pairs]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    return statistics.mean(ratios), float(stats.t.ppf(0.975, len(ratios) - 1)) * error


def tabulate(pairs: Sequence[dict[str, Costs]]) -> Table:
    """Return a line per work that both checkouts have."""
    table = Table("work", "CPU B/A", "95 %", "wall B/A", "95 %", "CPU s of A")
    for name in pairs[0]["A"]:
        cells = []
        for key in ("cpu_s", "wall_s"):
            mean, half = compare(pairs, name, key)
            cells += [f"{mean:.3f}", f"{mean - half:.3f}-{mean + half:.3f}"]
        seconds = statistics.mean(pair["A"][name]["cpu_s"] for pair in pairs)
        table.add_row(name, *cells, f"{seconds:.3f}")
    return table


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="FOLDER")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--only", default="", help="measure this name, or all that contain it")
    parser.add_argument("--rounds", type=int, help="of a run, beside one to warm up: 1, tiny 50")
    parser.add_argument("--json", metavar="FILE", help="write all runs there after every pair")
    parser.add_argument("--tiny", action="store_true", help="see whether it runs; inline")
    options = parser.parse_args()
    options.rounds = options.rounds or (50 if options.tiny else 1)
    if options.pairs < 2:
        parser.error(f"--pairs: an interval needs 2 or more, got {options.pairs}")
    for checkout in options.checkouts:
        if not (checkout / "benchmarks" / "engine.py").is_file():
            parser.error(f"{checkout}: no benchmarks/engine.py there; give the root of a checkout")
    return options


def main() -> None:
    """Measure and print."""
    options, console = read_options(), Console()
    arguments = ["--rounds", str(options.rounds), "--only", options.only]
    arguments += ["--tiny"] if options.tiny else []
    checkouts = {side: path.resolve() for side, path in zip(SIDES, options.checkouts, strict=True)}
    pairs: list[dict[str, Costs]] = []
    for number in range(options.pairs):
        order = SIDES[::-1] if number % 2 else SIDES
        console.print(f"pair {number + 1} of {options.pairs}: {order} ...", style="dim")
        pairs.append({side: run(checkouts[side], arguments) for side in order})
        if pairs[-1]["A"].keys() != pairs[-1]["B"].keys():
            names = sorted(pairs[-1]["A"].keys() ^ pairs[-1]["B"].keys())
            raise SystemExit(f"only one of the checkouts has {'; '.join(names)}; choose by --only")
        if options.json:
            Path(options.json).write_text(json.dumps(pairs, indent=2) + "\n")
    console.print(tabulate(pairs))


if __name__ == "__main__":
    main()
