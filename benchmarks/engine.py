"""Cost of an engine over the arithmetic itself: CPU and wall time against a bare PyTorch loop.

python benchmarks/engine.py [--json FILE] [--only NAME] [--repeats N] [--tiny]
                            [--engine-only | --clock]

The bare loop takes the same head and tail steps on batches of the same size, with the same
codec, in plain PyTorch: no Flower, no Ray, no bytes. For the CPU ratio one copy runs per
core at the same time; for the wall ratio one copy runs alone. Loop and engine alternate;
medians over repeats. CPU counts every process of the simulation, Ray's own too.
With --engine-only the engine runs alone, for paired.py: seconds per round, no ratios.
With --clock: CPU time with virtual time over that without, for each work.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message
from rich.console import Console
from rich.table import Table
from work import CLOCKED, STEPS, TINY, WORKS, Work, apart, here, simulated, simulated_together

from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.protocol import Batch
from fl_split.exchange.records import Record
from fl_split.exchange.served import Served
from fl_split.exchange.split import Split, head_gradient
from fl_split.flat import Flat
from fl_split.optimizers import SGD
from fl_split.payload import Payload
from fl_split.recipe.descent import Descent
from fl_split.recipe.schedules import ONLY
from fl_split.seeds import StepId
from fl_split.specs import parse
from simulations.clients import client_app
from simulations.engines import ENGINES
from simulations.engines.memory import keep_freed_memory
from strategies.server import flower_messages
from strategies.server.tail import TrainedTail
from strategies.server.threads import available_cores


def bare(work: Work, rounds: int, keeps_memory: bool = False) -> tuple[float, float]:
    """Run `rounds` rounds as a plain loop; return CPU and wall seconds per round."""
    torch.set_num_threads(1)
    if keeps_memory:
        keep_freed_memory()
    setup, sgd = work.setup(), SGD(lr=0.01)
    exchange, link, classes = Split(), setup.parts.link(), setup.train.num_classes
    heads = [Flat(copy.deepcopy(setup.head)) for _ in range(work.active)]
    tail = TrainedTail(Flat(setup.tail), sgd, exchange)
    images = torch.from_numpy(setup.train.pixels).float().sub_(127.5).div_(127.5)
    labels = torch.from_numpy(setup.train.labels)
    cpu = wall = 0.0
    for number in range(rounds + 1):
        if number == 1:  # the first round warms up
            cpu, wall = time.process_time(), time.perf_counter()
        descents = [Descent(head, sgd) for head in heads]
        is_joint = work.strategy == "parallel()"
        tails = [tail] * work.active if is_joint else tail.forks(work.active)
        groups = [range(work.active)] if is_joint else [[k] for k in range(work.active)]
        for step, group in itertools.product(range(STEPS), groups):
            sent: dict[int, Payload] = {}
            steps = {k: StepId(0, number, k, step) for k in group}
            for k, at in steps.items():
                rows = slice((STEPS * k + step) * work.batch, (STEPS * k + step + 1) * work.batch)
                batch = Batch(images[rows], labels[rows], classes)
                sent[k] = exchange.smash(heads[k].module, link.codec, batch, at, {})
            trained = tails[group[0]]
            weights = {k: 1 / len(group) for k in group}
            arrived = {k: link.carry(sent[k], at, trained.flat.module) for k, at in steps.items()}
            served = trained.serve(arrived, weights, steps[group[0]], GraphMemory())
            assert isinstance(served, Served)
            trained.descend(served.gradient, ONLY)
            for k in group:
                gradient = head_gradient(heads[k], sent.pop(k), served.cuts[k])
                descents[k].step(gradient)
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


def loaded(work: Work, rounds: int, copies: int, keeps_memory: bool) -> float:
    """Return the median CPU seconds per round of `copies` bare loops at the same time."""
    with ProcessPoolExecutor(copies, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(bare, *zip(*[(work, rounds, keeps_memory)] * copies, strict=True)))
    return statistics.median(cpu for cpu, _ in found)


def measure(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """Alternate loop and engine; return the ratios of each repeat and their medians."""
    cores, run = (1, here) if options.tiny else (available_cores(), apart)
    rounds, engine, keeps_memory = options.rounds, options.engine, options.keep_memory
    cpu, wall, steps = [], [], work.active * STEPS
    for _ in range(options.repeats):
        reference_cpu = loaded(work, rounds, cores, keeps_memory)
        _, reference_wall = run(bare, work, rounds, keeps_memory)
        own = run(simulated, work, rounds, engine)
        cpu.append(own.cpu / reference_cpu)
        wall.append(own.wall / reference_wall)
    return {
        "name": work.name,
        "engine": engine,
        "cpu_ratio": statistics.median(cpu),
        "wall_ratio": statistics.median(wall),
        "cpu_ratios": cpu,
        "wall_ratios": wall,
        "bare_ms_per_client_step": 1000 * reference_cpu / steps,
        "engine_cpu_ms_per_client_step": 1000 * own.cpu / steps,
    }


def empty_exchange(clients: int, engine: str) -> float:
    """Median milliseconds of an exchange in which clients only say how many samples they hold."""
    torch.set_num_threads(1)
    setup = Work("", clients, 1, hidden=16).setup()
    question = flower_messages.content(Record(flower_messages.SAMPLE_COUNT))
    action, times = flower_messages.QUERY + flower_messages.SAMPLE_COUNT, []
    with parse(engine, ENGINES).session(client_app.app) as session:
        grid = session(setup.worker(), clients, 600.0)
        for _ in range(11):
            began = time.perf_counter()
            sent = [Message(question, node, action, group_id="0") for node in grid.get_node_ids()]
            assert len(list(grid.send_and_receive(sent))) == clients
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[1:])


FIRST_EXCHANGE = """
from simulations.cli import terminal
with terminal.quiet():
    from simulations import report
    from simulations.clients import client_app
    from simulations.runs.experiment import Experiment
    from simulations.runs.setup import prepare
from flwr.app import Message
from fl_split.exchange.records import Record
from strategies.server import flower_messages
question = flower_messages.content(Record(flower_messages.SAMPLE_COUNT))
action = flower_messages.QUERY + flower_messages.SAMPLE_COUNT
setup = prepare(Experiment.from_dict({"engine": %r}))
with setup.parts.engine.session(client_app.app) as session:
    grid = session(setup.worker(), 100, 60.0)
    sent = [Message(question, node, action, group_id="0") for node in grid.get_node_ids()]
    assert len(list(grid.send_and_receive(sent))) == 100
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


def latencies(engine: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what an engine costs before it computes anything."""
    clients, run = (3, here) if options.tiny else (500, apart)
    milliseconds = run(empty_exchange, clients, engine)
    seconds = statistics.median(first_exchange(engine) for _ in range(options.repeats))
    return [
        {"name": f"empty exchange over {clients}", "engine": engine, "ms": milliseconds},
        {"name": "first exchange", "engine": engine, "seconds": seconds},
    ]


def against_loop(works: Sequence[Work], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure works and print them as ratios of the bare loop; then latencies."""
    console = Console()
    table = Table("work", "CPU ratio", "spread", "wall ratio", "spread", "bare ms", "engine CPU ms")
    rows = []
    for work in works:
        console.print(f"measuring {work.name} ...", style="dim")
        row = measure(work, options)
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
        for engine in ["inline()"] if options.tiny else ["ray()", "inline()"]:
            found = latencies(engine, options)
            rows += found
            console.print(
                f"{engine}: {found[0]['name']} clients {found[0]['ms']:.0f} ms, "
                f"from command to first exchange {found[1]['seconds']:.1f} s"
            )
    return rows


def alone(works: Sequence[Work], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure works on one engine and print seconds per round."""
    table = Table("work", "CPU s", "wall s")
    rows = []
    found = simulated_together(works, options.rounds, options.engine)
    for work, (cpu, wall, *_) in zip(works, found, strict=True):
        rows.append({"name": work.name, "engine": options.engine, "cpu_s": cpu, "wall_s": wall})
        table.add_row(work.name, f"{cpu:.3f}", f"{wall:.3f}")
    Console().print(table)
    return rows


def clocked(works: Sequence[Work], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what virtual time costs: systems by turns, CPU time of each over that of none."""
    table = Table("work", "system", "CPU ratio", "spread")
    rows = []
    for work in works:
        turns = [replace(work, system=system) for system in CLOCKED] * options.repeats
        found = [cost.cpu for cost in simulated_together(turns, options.rounds, options.engine)]
        for place, system in enumerate(CLOCKED[1:], start=1):
            of_each = zip(found[place :: len(CLOCKED)], found[:: len(CLOCKED)], strict=True)
            ratios = [cpu / plain for cpu, plain in of_each]
            row = {"name": work.name, "system": system, "cpu_ratio": statistics.median(ratios)}
            rows.append(row)
            spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
            table.add_row(work.name, system, f"{row['cpu_ratio']:.3f}", spread)
    Console().print(table)
    return rows


def read_options() -> argparse.Namespace:
    """Read the command line; the tiny size is one round of each work, inline."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--only", default="", help="measure this name, or all that contain it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, help="beside one to warm up: 3, tiny 1")
    parser.add_argument("--engine", default="ray()")
    parser.add_argument("--engine-only", action="store_true", help="leave out the bare loop")
    parser.add_argument("--clock", action="store_true", help="measure what virtual time costs")
    parser.add_argument("--tiny", action="store_true", help="see whether it runs; inline")
    parser.add_argument("--keep-memory", action="store_true", help="in the loop, as in the engine")
    options = parser.parse_args()
    if options.tiny:
        options.repeats, options.engine = 1, "inline()"
    options.rounds = options.rounds or (1 if options.tiny else 3)
    names = [work.name for work in (TINY if options.tiny else WORKS)]
    if not any(options.only in name for name in names):
        parser.error(f"--only: nothing contains {options.only!r}; there are: {'; '.join(names)}")
    return options


def main() -> None:
    """Measure and print."""
    options = read_options()
    print(
        f"{platform.platform()}, {available_cores()} cores, torch {torch.__version__}, "
        f"1 thread per process, load {os.getloadavg()[0]:.1f}, seed 0, {STEPS} steps per round, "
        f"{options.rounds} rounds, {options.repeats} repeats, {options.engine}"
    )
    works = TINY if options.tiny else WORKS
    exact = [work for work in works if work.name == options.only]
    works = exact or [work for work in works if options.only in work.name]
    measured = clocked if options.clock else alone if options.engine_only else against_loop
    rows = measured(works, options)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
