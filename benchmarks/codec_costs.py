"""Cost and fidelity of every codec on the features of a ViT at the cut.

python benchmarks/codec_costs.py [--batch N] [--only NAME] [--json FILE] [--tiny] [KEY=VALUE ...]

KEY=VALUE are keys of an experiment (model, dataset, cut, ...); by default a ViT-Tiny from
scratch on the digits. Real features: model="pretrained(path='FOLDER')" dataset="local(...)".
Milliseconds are CPU time of one thread, medians: client = encode, pack, serialise; server =
read, unpack, decode and check what has come; share = both over forward and backward of the head
on the same batch. Ratio: uplink bytes over fp32, labels included. Error: ||z' - z|| / ||z|| where
the shape is kept. MB kept: activations that autograd saves for the batch in head and codec.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fl_split.activations import activation_bytes, saved
from fl_split.codecs import CODECS, Codec, Identity, Smashed, parse_codec
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch
from fl_split.exchange.split import encode
from fl_split.models.cut import insert
from fl_split.seeds import StepId
from simulations.runs.experiment import Experiment
from simulations.runs.settings import read_overrides
from simulations.runs.setup import Setup, prepare
from strategies.server.threads import available_cores

TINY = "vit(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, patch_size=4"
DEFAULTS = {"model": f"{TINY}, image_size=32)", "cut": 3, "clients": 1, "partition": "iid()"}
SMALL = {"model": "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)", "cut": 1}

CHAINS = [
    "adc(ratio=0.1) | uniform(bits=8)",
    "uniform(bits=4, per='channel')",
    "uniform(bits=3, per='channel') | rans()",
    "uniform(bits=4) | zstd()",
]
AT, REPEATS = StepId(0, 0, 0, 0), 9


def cpu_milliseconds(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median CPU time of one thread, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        began = time.thread_time()
        work()
        times.append(1000 * (time.thread_time() - began))
    return statistics.median(times)


def head_milliseconds(setup: Setup, batch: int) -> float:
    """Forward and backward of the head."""
    pixels, _ = setup.train.batch(np.arange(batch))
    return cpu_milliseconds(lambda: setup.head(pixels)[0].sum().backward(), 3)


def measure(codec: Codec, setup: Setup, batch: int, head: float) -> dict[str, Any]:
    """Time both halves, the codec's networks too; compare what arrives with what was sent."""
    pixels, labels = setup.train.batch(np.arange(batch))
    classes, link = setup.train.num_classes, Link(codec, Identity())
    networks = copy.deepcopy((setup.head, setup.tail))
    insert(*networks, codec, 0)
    encoder, decoder = networks[0].encoder, networks[1].decoder
    with torch.no_grad():
        tokens, attention = setup.head(pixels)

        def send() -> bytes:
            num_read = setup.head.num_read
            smashed = Smashed(encoder(tokens), attention, labels, classes, num_read)
            return link.up(encode(codec, smashed, AT), AT)

        def receive() -> torch.Tensor:
            return decoder(link.arrive(data, AT, networks[1]).received.tokens)

        data = send()
        client, server = cpu_milliseconds(send), cpu_milliseconds(receive)
        found = receive()
    with saved() as sizes:
        step = Batch(pixels, labels, classes)
        payload = setup.exchange.smash(networks[0], codec, step, AT, {})  # noqa: F841
    whole = 4 * tokens.numel()
    is_same = found.shape == tokens.shape
    error = float((found - tokens).norm() / tokens.norm()) if is_same else None
    return {
        "client_ms": client,
        "server_ms": server,
        "share": (client + server) / head,
        "mb_per_s": whole / 1e3 / (client + server),
        "ratio": len(data) / whole,
        "error": error,
        "activation_mb": activation_bytes(sizes, networks[0].parameters()) / 1e6,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", default="", help="measure specs that contain this")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--tiny", action="store_true", help="see whether it runs; small model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    defaults = {**DEFAULTS, **(SMALL if options.tiny else {})}
    setup = prepare(Experiment.from_dict({**defaults, **read_overrides(options.settings)}))
    head = head_milliseconds(setup, options.batch)
    console, (tokens, width) = Console(), setup.head.smashed_shape
    console.print(
        f"{platform.platform()}, {available_cores()} cores, torch {torch.__version__}, "
        f"1 thread, load {os.getloadavg()[0]:.1f}, B={options.batch}, N={tokens}, D={width}; "
        f"head forward and backward {head:.0f} ms"
    )
    table = Table(
        "codec", "client ms", "server ms", "share of head", "MB/s", "ratio", "error", "MB kept"
    )
    rows = []
    for spec in (spec for spec in [*CODECS, *CHAINS] if options.only in spec):
        row = measure(parse_codec(spec), setup, options.batch, head)
        rows.append({**row, "name": spec})
        table.add_row(
            spec,
            f"{row['client_ms']:.1f}",
            f"{row['server_ms']:.1f}",
            f"{100 * row['share']:.1f} %",
            f"{row['mb_per_s']:.0f}",
            f"{row['ratio']:.3f}",
            "-" if row["error"] is None else f"{row['error']:.3f}",
            f"{row['activation_mb']:.1f}",
        )
    console.print(table)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
