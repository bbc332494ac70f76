"""Data larger than memory: start-up and resident memory, cold, warm and decoded on the fly.

python benchmarks/data.py [--images N] [--side S] [--folder DIR] [--engine SPEC] [--json FILE]

Made-up JPEG images in Parquet files, by default 100,000 of 224 pixels: 15 GB decoded. Each row is
a fresh process that prepares 1,000 clients and trains one round of 20 of them (ViT, d=16, 1+1
blocks). Seconds are to the end of the preparation, imports left out; memory is the largest
resident size of any process, pages of files included. Needs 20 GB in DIR; removes them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

ROUND = """
import json, sys, time
from simulations.runs.experiment import Experiment
from simulations.runs.run import run_each
from simulations.runs.setup import prepare
from contextlib import nullcontext
if __name__ == "__main__":
    values = json.loads(sys.argv[1])
    experiment = Experiment.from_dict(values)
    begin = time.perf_counter()
    setup = prepare(experiment)
    ready = time.perf_counter() - begin
    began = time.perf_counter()
    run_each({"": setup}, lambda name, setup: nullcontext(lambda row, result: None))
    print("RESULT", json.dumps([ready, time.perf_counter() - began]))
"""

DISTINCT = 500
"""Images that are made; more are these again, with another quality."""

STARTS = ("digits", "on the fly, cold", "on the fly, warm", "cache, cold", "cache, warm")

TINY = "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size={patch})"

LOOK = 0.2
"""Seconds between two looks at memory."""


def make(folder: Path, images: int, side: int) -> None:
    """Write images of ten classes into Parquet files of 10,000 rows, to train and to test on."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}
    )
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 255, (min(DISTINCT, images), 28, 28, 3), dtype=np.uint8)
    large = [Image.fromarray(one).resize((side, side)) for one in coarse]
    for name, count in (("train", images), ("test", max(20, images // 20))):
        for start in range(0, count, 10_000):
            numbers = range(start, min(start + 10_000, count))
            rows = [_jpeg(large[k % len(large)], 50 + k // len(large) % 45) for k in numbers]
            labels = [k % 10 for k in numbers]
            table = {"image": [{"bytes": one, "path": None} for one in rows], "label": labels}
            file = folder / f"{name}-{start // 10_000:03d}.parquet"
            datasets.Dataset.from_dict(table, features).to_parquet(file)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def measure(values: dict[str, object], environment: dict[str, str]) -> tuple[float, float, float]:
    """Return seconds to prepare, seconds of a round, and MB of the largest process."""
    command = [sys.executable, "-c", ROUND, json.dumps(values)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        largest, tree = 0, psutil.Process(child.pid)
        while child.poll() is None:
            try:
                family = [tree, *tree.children(recursive=True)]
                largest = max(largest, *(_resident(one) for one in family))
            except psutil.Error:
                pass
            time.sleep(LOOK)
        assert child.stdout is not None
        lines = [line for line in child.stdout if line.startswith("RESULT")]
    if not lines:
        raise SystemExit(f"{values} failed")
    ready, round_seconds = json.loads(lines[0].removeprefix("RESULT"))
    return ready, round_seconds, largest / 1e6


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def main() -> None:
    """Make the data, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--folder", type=Path, help="where there is room; a temporary one")
    parser.add_argument("--engine", default="ray()")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--tiny", action="store_true", help="see whether it runs; inline")
    options = parser.parse_args()
    if options.tiny:
        options.images, options.side, options.engine = 200, 16, "inline()"
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "d").mkdir()
        make(folder / "d", options.images, options.side)
        starts = STARTS[-2:] if options.tiny else STARTS
        rows = measured(folder, options.images, options.side, options.engine, starts)
    table = Table("start", "ready s", "round s", "largest process, MB")
    for row in rows:
        table.add_row(
            row["name"], f"{row['ready']:.1f}", f"{row['round']:.1f}", f"{row['mb']:,.0f}"
        )
    title = f"{options.images:,} images of {options.side} pixels"
    Console().print(f"{title}: {3 * options.images * options.side**2 / 1e9:.3g} GB decoded", table)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


def measured(
    folder: Path, images: int, side: int, engine: str, starts: Sequence[str]
) -> list[dict[str, Any]]:
    """Measure starts."""
    clients = min(1000, images // 4)
    patch = max(4, side // 7)
    base = {
        "clients": clients,
        "fraction": min(1.0, 20 / clients),
        "rounds": 1,
        "local_steps": 2,
        "batch_size": 4,
        "partition": "iid()",
        "cut": 1,
        "engine": engine,
        "checkpoint_every": 0,
        "model": TINY.format(patch=patch),
    }
    ours = {**base, "dataset": f"local(path={str(folder / 'd')!r})"}
    digits = {**base, "dataset": "digits()", "model": TINY.format(patch=4)}
    environment = {
        **os.environ,
        "FL_SPLIT_CACHE": str(folder / "cache"),
        "HF_HOME": str(folder / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    rows: list[dict[str, Any]] = []
    for name in starts:
        values = digits if name == "digits" else ours
        values = {**values, "cache_gb": 0.0 if "fly" in name else 100.0}
        out = str(folder / name.replace(", ", "-").replace(" ", "_"))
        ready, seconds, megabytes = measure({**values, "out": out}, environment)
        rows.append({"name": name, "ready": ready, "round": seconds, "mb": megabytes})
    return rows


if __name__ == "__main__":
    main()
