"""What the benchmarks train: synthetic work of known size, on an engine, with its cost."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import numpy as np
import psutil
import torch
from datasets import Dataset

from fl_split.flat import Flat
from fl_split.models.vit import ViT
from fl_split.models.vit import split as cut
from fl_split.specs import parse
from simulations.clients import client_app
from simulations.data import statistics
from simulations.data.images import Decoded
from simulations.data.partition import Unheld, split
from simulations.data.ragged import Ragged
from simulations.data.samples import Labels, Samples
from simulations.engines import ENGINES
from simulations.engines.local_grid import Session
from simulations.runs.centralised import CentralisedTrainer
from simulations.runs.experiment import Experiment
from simulations.runs.lateness import TimedAttendance
from simulations.runs.setup import Setup
from simulations.runs.virtual_time import VirtualTime
from simulations.system.system import Timed
from strategies import RoundResult, Training, train
from strategies.server.attendance import Everyone
from strategies.server.threads import ServerThreads

R = TypeVar("R")

STEPS = 2
"""Batches of a client per round."""

PATIENCE = 600.0
"""Seconds that a client may take to answer."""


@dataclass(frozen=True)
class Work:
    """One line of the table.

    Attributes
    ----------
    rows : int
        Samples by client, on average; 0 takes what the steps of a round need.
    partition : str
        Who holds which; by default all alike many, one behind the other.
    """

    name: str
    clients: int
    batch: int
    hidden: int = 64
    blocks: int = 6
    cut: int = 2
    codec: str = "identity()"
    strategy: str = "parallel()"
    fraction: float = 1.0
    image: int = 32
    channels: int = 3
    rows: int = 0
    partition: str = ""
    system: str = "none()"

    @property
    def active(self) -> int:
        """Clients that train in a round."""
        return round(self.clients * self.fraction)

    def data(self) -> tuple[Decoded, Labels]:
        """Make up images and labels of ten classes, all at random."""
        draw = np.random.default_rng(0)
        count = self.clients * (self.rows or self.batch * STEPS)
        shape = count, self.channels, self.image, self.image
        return draw.integers(0, 255, shape, dtype=np.uint8), draw.integers(0, 10, count)

    def parts(self, labels: Labels) -> Ragged:
        """Give rows to clients."""
        if not self.partition:
            each = len(labels) // self.clients
            return Ragged(np.arange(len(labels)), np.full(self.clients, each))
        table = Dataset.from_dict({"label": labels})
        return split(table, self.partition, clients=self.clients, label="label", seed=0)

    def setup(self, data: tuple[Decoded, Labels] | None = None) -> Setup:
        """Prepare the work on `data`, in patches of 4 pixels a side; nothing is evaluated."""
        pixels, labels = data or self.data()
        parts = self.parts(labels)
        spec = ViT(
            hidden_size=self.hidden,
            num_hidden_layers=self.blocks,
            num_attention_heads=3 if self.hidden == 192 else self.hidden // 16,
            patch_size=4,
        )
        model = spec.build(image_size=self.image, channels=self.channels, num_classes=10, seed=0)
        experiment = Experiment.from_dict(
            {
                "clients": self.clients,
                "fraction": self.fraction,
                "cut": self.cut,
                "codec": self.codec,
                "strategy": self.strategy,
                "system": self.system,
                "batch_size": self.batch,
                "local_steps": STEPS,
                "head_optimizer": "sgd(lr=0.01)",
                "tail_optimizer": "sgd(lr=0.01)",
            }
        )
        head, tail = cut(model, self.cut)
        return Setup(
            experiment=experiment,
            model=model,
            head=head,
            tail=tail,
            train=Samples(pixels, labels, parts, 10, [0.5], [0.5]),
            test=Samples(pixels[:1], labels[:1], [], 10, [0.5], [0.5]),
            shards={},
            unheld=Unheld(0, []),
            class_names=[str(label) for label in range(10)],
            model_notes=[],
        )


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

CLOCKED = ("none()", "wifi()", "wifi() | deadline('1h', per='exchange')")
"""Systems: without a clock, one after each round, one before each joint step."""

TINY = [Work("4 clients, 2 a round, ADC 0.1", 4, 2, 16, 2, 1, "adc(ratio=0.1)", fraction=0.5)]
"""Work of no time, to see that the programs run."""


class Cost(NamedTuple):
    """What a simulation takes.

    Attributes
    ----------
    cpu, wall : float
        Seconds per round, of all processes and by the clock.
    ready : float
        Seconds from the data to the end of a first round, which is no part of the others.
    megabytes : float
        Most memory of this process so far, the data in it.
    """

    cpu: float
    wall: float
    ready: float
    megabytes: float


def simulated(work: Work, rounds: int, engine: str) -> Cost:
    """Start an engine and run `rounds` rounds."""
    return next(simulated_together([work], rounds, engine))


def simulated_together(works: Sequence[Work], rounds: int, engine: str) -> Iterator[Cost]:
    """Run works one after the other on one engine, which takes seconds to start."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with parse(engine, ENGINES).session(client_app.app) as session:
        for work in works:
            yield _train(work, rounds, session)


def _train(work: Work, rounds: int, session: Session) -> Cost:
    """Run `rounds` rounds and one before them, to warm up."""
    data, began = work.data(), time.perf_counter()
    setup, threads = work.setup(data), ServerThreads()
    with TemporaryDirectory() as folder:
        statistics.write(setup.train, Path(folder))  # as every run does
    parts, marks = setup.parts, list[tuple[float, float]]()
    head, tail = Flat(setup.head), Flat(setup.tail)

    def mark(result: RoundResult) -> None:
        for timer in timers:
            timer.measure(result)
        marks.append((all_cpu_seconds(), time.perf_counter()))

    run = Timed(work.clients, 0, work.codec)
    timers = [VirtualTime(parts.system, run)] if parts.system else []
    training = Training(
        clients=work.clients,
        fraction=work.fraction,
        batch_size=work.batch,
        seed=0,
        exchange=setup.exchange,
        link=parts.link(),
        tail_optimizer=parts.tail_optimizer,
        head=head,
        tail=tail,
        pooled_round=CentralisedTrainer(head, tail, setup),
        threads=threads,
        attendance=TimedAttendance(timers[0]) if timers else Everyone(),
        on_round=mark,
    )
    grid = session(setup.worker(), work.clients, PATIENCE)
    weights = setup.initial_weights()
    train(parts.strategy, grid, weights, rounds + 1, PATIENCE, training)
    first, last = marks[0], marks[-1]
    cpu, wall = ((end - begin) / rounds for begin, end in zip(first, last, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000  # kB, on Linux
    return Cost(cpu, wall, first[1] - began, peak)


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


def here(function: Callable[..., R], *arguments: Any) -> R:
    """Run in this process: at the tiny size, where imports would take most of the time."""
    return function(*arguments)
