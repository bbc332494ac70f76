"""Cost of an engine over the arithmetic itself: CPU and wall time against a bare PyTorch loop.

python benchmarks/engine.py [--json FILE] [--only NAME] [--repeats N]

The bare loop takes the same head and tail steps on batches of the same size, with the same
codec, in plain PyTorch: no Flower, no Ray, no bytes. For the CPU ratio one copy runs per
core at the same time; for the wall ratio one copy runs alone. Loop and engine alternate;
medians over repeats. CPU counts every process of the simulation, Ray's own too.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from flwr.app import RecordDict
from rich.console import Console
from rich.table import Table

from fl_split.codecs import CODECS
from fl_split.flat import Flat, descend
from fl_split.optimizers import SGD
from fl_split.specs import parse
from fl_split.step import Place, head_gradient, smash
from fl_split.vit import ViT, split
from simulations import client_app
from simulations import table as tables
from simulations.evaluator import Evaluator
from simulations.experiment import Experiment
from simulations.memory import keep_freed_memory
from simulations.partition import Unheld
from simulations.pool import Pool
from simulations.setup import Setup
from strategies import Training, messages
from strategies.crew import available_cores
from strategies.tail import TrainedTail

R = TypeVar("R")

STEPS = 2
"""Batches of a client per round."""


@dataclass(frozen=True)
class Work:
    """One line of the table."""

    name: str
    clients: int
    batch: int
    hidden: int = 64
    blocks: int = 6
    cut: int = 2
    codec: str = "identity()"
    strategy: str = "parallel()"
    fraction: float = 1.0

    @property
    def active(self) -> int:
        """Clients that train in a round."""
        return round(self.clients * self.fraction)

    def setup(self, engine: str) -> Setup:
        """Synthetic 32x32 colour images, 65 tokens, no evaluation worth the name."""
        spec = ViT(
            hidden_size=self.hidden,
            num_hidden_layers=self.blocks,
            num_attention_heads=3 if self.hidden == 192 else self.hidden // 16,
            patch_size=4,
        )
        model = spec.build(image_size=32, channels=3, num_classes=10, seed=0)
        draw = np.random.default_rng(0)
        count = self.clients * self.batch * STEPS
        pixels = draw.integers(0, 255, (count, 3, 32, 32), dtype=np.uint8)
        labels = draw.integers(0, 10, count)
        parts = list(np.arange(count).reshape(self.clients, -1))
        experiment = Experiment(
            clients=self.clients,
            fraction=self.fraction,
            cut=self.cut,
            codec=self.codec,
            strategy=self.strategy,
            batch_size=self.batch,
            engine=engine,
            head_optimizer="sgd(lr=0.01)",
            tail_optimizer="sgd(lr=0.01)",
        )
        train = tables.Table(pixels, labels, parts, 10, [0.5], [0.5])
        test = tables.Table(pixels[:1], labels[:1], [], 10, [0.5], [0.5])
        names = [str(number) for number in range(10)]
        halves = split(model, self.cut)
        return Setup(experiment, model, *halves, train, test, {}, Unheld(0, []), names)


WORKS = [
    Work("100 clients, d=64, B=16", 100, 16),
    Work("100 clients, d=64, B=8", 100, 8),
    Work("300 clients, d=64, B=4", 300, 4),
    Work("100 clients, d=64, B=16, ADC 0.1", 100, 16, codec="adc(ratio=0.1)"),
    Work("100 clients, d=64, B=16, sflv1", 100, 16, strategy="sflv1()"),
    Work("10 clients, ViT-Tiny, B=16", 10, 16, hidden=192, blocks=12, cut=3),
    Work("10 clients, d=64, B=16", 10, 16),
    Work("500 clients, 50 a round, d=64, B=16", 500, 16, fraction=0.1),
    Work("1000 clients, 100 a round, d=64, B=16", 1000, 16, fraction=0.1),
]


def bare(work: Work, rounds: int, keeps_memory: bool = False) -> tuple[float, float]:
    """Run `rounds` rounds as a plain loop; return CPU and wall seconds per round."""
    torch.set_num_threads(1)
    if keeps_memory:
        keep_freed_memory()
    setup, codec, sgd = work.setup("inline()"), parse(work.codec, CODECS), SGD(lr=0.01)
    heads = [Flat(copy.deepcopy(setup.head)) for _ in range(work.active)]
    tail = TrainedTail(Flat(setup.tail), sgd, codec, 0)
    images = torch.from_numpy(setup.train.pixels).float().sub_(127.5).div_(127.5)
    labels = torch.from_numpy(setup.train.labels)
    cpu = wall = 0.0
    for number in range(rounds + 1):
        if number == 1:  # the first round warms up
            cpu, wall = time.process_time(), time.perf_counter()
        optimizers = [sgd.build(head.vector) for head in heads]
        is_joint = work.strategy == "parallel()"
        tails = [tail] * work.active if is_joint else tail.forks(work.active)
        groups = [range(work.active)] if is_joint else [[k] for k in range(work.active)]
        for step, group in itertools.product(range(STEPS), groups):
            sent = {}
            for k in group:
                rows = slice((STEPS * k + step) * work.batch, (STEPS * k + step + 1) * work.batch)
                place = Place(0, number, k, step)
                sent[k] = smash(heads[k].module, codec, images[rows], labels[rows], 10, place)
            weights = {k: 1 / len(group) for k in group}
            arrived = {k: tail.arrive(payload) for k, payload in sent.items()}
            served = tails[group[0]].serve(arrived, weights, number, step)
            tails[group[0]].descend(served.gradient)
            for k in group:
                gradient = head_gradient(heads[k], sent.pop(k), served.cuts[k])
                descend(optimizers[k], heads[k], gradient)
        average(heads)
        if not is_joint:
            average([copied.flat for copied in tails])
    return (time.process_time() - cpu) / rounds, (time.perf_counter() - wall) / rounds


@torch.no_grad()
def average(models: Sequence[Flat[Any]]) -> None:
    """Give all models the mean of their weights, as heads have at a round's end."""
    mean = torch.stack([model.vector for model in models]).mean(dim=0)
    for model in models:
        model.vector.copy_(mean)


def simulated(work: Work, rounds: int, engine: str) -> tuple[float, float]:
    """Run `rounds` rounds on an engine; return CPU and wall seconds per round."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    setup = work.setup(engine)
    marks: list[tuple[float, float]] = []
    head, tail = Flat(setup.head), Flat(setup.tail)
    training = Training(
        clients=work.clients,
        fraction=work.fraction,
        batch_size=work.batch,
        seed=0,
        codec=setup.experiment.build("codec"),
        downlink=setup.experiment.build("downlink"),
        tail_optimizer=setup.experiment.build("tail_optimizer"),
        head=head,
        tail=tail,
        pooled_round=Pool(head, tail, setup),
        on_round=lambda report: marks.append((all_cpu_seconds(), time.perf_counter())),
    )
    with setup.experiment.build("engine").session(client_app.app) as session:
        grid = session(setup.worker(), work.clients, 600.0)
        evaluate = Evaluator(head, tail, setup, training.crew)
        setup.experiment.build("strategy").start(
            grid, setup.initial_arrays(), rounds + 1, evaluate_fn=evaluate, training=training
        )
    first, last = marks[0], marks[-1]
    return (last[0] - first[0]) / rounds, (last[1] - first[1]) / rounds


def all_cpu_seconds() -> float:
    """CPU time of this process and everything it started, Ray's daemons too."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def apart(function: Callable[..., R], *arguments: Any) -> R:
    """Run in a fresh process, so that nothing is inherited."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def loaded(work: Work, rounds: int, copies: int, keeps_memory: bool) -> float:
    """Return the median CPU seconds per round of `copies` bare loops at the same time."""
    with ProcessPoolExecutor(copies, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(bare, *zip(*[(work, rounds, keeps_memory)] * copies, strict=True)))
    return statistics.median(cpu for cpu, _ in found)


def measure(
    work: Work, repeats: int, rounds: int, engine: str, keeps_memory: bool
) -> dict[str, Any]:
    """Alternate loop and engine; return the ratios of each repeat and their medians."""
    cores = available_cores()
    cpu, wall, steps = [], [], work.active * STEPS
    for _ in range(repeats):
        reference_cpu = loaded(work, rounds, cores, keeps_memory)
        _, reference_wall = apart(bare, work, rounds, keeps_memory)
        own_cpu, own_wall = apart(simulated, work, rounds, engine)
        cpu.append(own_cpu / reference_cpu)
        wall.append(own_wall / reference_wall)
    return {
        "name": work.name,
        "engine": engine,
        "cpu_ratio": statistics.median(cpu),
        "wall_ratio": statistics.median(wall),
        "cpu_ratios": cpu,
        "wall_ratios": wall,
        "bare_ms_per_client_step": 1000 * reference_cpu / steps,
        "engine_cpu_ms_per_client_step": 1000 * own_cpu / steps,
    }


def empty_exchange(clients: int, engine: str) -> float:
    """Median milliseconds of an exchange in which every client is asked for nothing."""
    torch.set_num_threads(1)
    setup = Work("", clients, 1, hidden=16).setup(engine)
    times = []
    with setup.experiment.build("engine").session(client_app.app) as session:
        grid = session(setup.worker(), clients, 600.0)
        for _ in range(11):
            began = time.perf_counter()
            sent = [
                grid.create_message(RecordDict(), messages.ROLL_CALL, node, "0")
                for node in grid.get_node_ids()
            ]
            assert len(list(grid.send_and_receive(sent))) == clients
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[1:])


FIRST_EXCHANGE = """
from simulations import terminal
with terminal.quiet():
    from simulations import client_app, report
    from simulations.experiment import Experiment
    from simulations.setup import prepare
from strategies.crew import Crew
from strategies.participants import roll_call
setup = prepare(Experiment.from_dict({"engine": %r}))
with setup.experiment.build("engine").session(client_app.app) as session:
    roll_call(session(setup.worker(), 100, 60.0), 100, 60.0, Crew())
    print("first exchange", flush=True)
"""


def first_exchange(engine: str) -> float:
    """Seconds from starting Python to the end of the first exchange of the default experiment."""
    began = time.perf_counter()
    command = [sys.executable, "-c", FIRST_EXCHANGE % engine]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "first exchange" not in process.stdout.readline():
            assert process.poll() is None, "did not come up"
        return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--only", default="", help="measure names that contain this")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="ray()")
    parser.add_argument(
        "--keep-memory", action="store_true", help="let the loop keep freed memory, as the engine"
    )
    options = parser.parse_args()
    console = Console()
    console.print(
        f"{platform.platform()}, {available_cores()} cores, torch {torch.__version__}, "
        f"1 thread per process, load {os.getloadavg()[0]:.1f}, seed 0, {STEPS} steps per round, "
        f"{options.rounds} rounds, {options.repeats} repeats, {options.engine}"
    )
    table = Table("work", "CPU ratio", "spread", "wall ratio", "spread", "bare ms", "engine CPU ms")
    rows = []
    for work in WORKS:
        if options.only in work.name:
            console.print(f"measuring {work.name} ...", style="dim")
            row = measure(
                work, options.repeats, options.rounds, options.engine, options.keep_memory
            )
            rows.append(row)
            table.add_row(
                row["name"],
                f"{row['cpu_ratio']:.2f}",
                f"{min(row['cpu_ratios']):.2f}-{max(row['cpu_ratios']):.2f}",
                f"{row['wall_ratio']:.2f}",
                f"{min(row['wall_ratios']):.2f}-{max(row['wall_ratios']):.2f}",
                f"{row['bare_ms_per_client_step']:.1f}",
                f"{row['engine_cpu_ms_per_client_step']:.1f}",
            )
    console.print(table)
    if not options.only:
        for engine in ("ray()", "inline()"):
            milliseconds = apart(empty_exchange, 500, engine)
            seconds = statistics.median(first_exchange(engine) for _ in range(options.repeats))
            console.print(
                f"{engine}: empty exchange over 500 clients {milliseconds:.0f} ms, "
                f"from command to first exchange {seconds:.1f} s"
            )
            rows += [
                {"name": "empty exchange over 500", "engine": engine, "ms": milliseconds},
                {"name": "first exchange", "engine": engine, "seconds": seconds},
            ]
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
