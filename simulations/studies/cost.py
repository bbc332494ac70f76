"""What a run will cost, before it is run.

Steps and samples are those of its own schedule and partition, FLOPs the closed form of the
results. Bytes are counted on a payload of the untrained model, once for each size of batch
and width of its labels: exact for codecs whose payloads have a fixed size, else near. A
budget may end a run earlier, and clients may be dropped: then all of this is an upper bound.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import RecordDict

from fl_split.exchange.split import Place, arrive, pack, smash
from fl_split.exchange.ushape import traverse
from fl_split.exchange.whole import predict, train_step
from fl_split.flat import Flat
from fl_split.models.flops import head_step, tail_step, whole_step
from fl_split.payload import Payload
from simulations.runs.evaluator import EVALUATION_ROWS
from simulations.runs.setup import Setup
from strategies import SplitStrategy
from strategies.server import messages


@dataclass(frozen=True)
class Cost:
    """Of a whole run.

    `seconds` are CPU time of one thread that trains and evaluates, without start and messages.
    """

    steps: int
    samples: int
    payload_bytes: int
    head_bytes: int
    client_flops: int
    seconds: float
    is_bound: bool


class Estimator:
    """Estimate runs; what is timed once serves all runs with the same model, cut and codec."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # as in every run; more would wait for each other, and count it
        self._seconds: dict[tuple[object, ...], tuple[float, float]] = {}

    def __call__(self, setup: Setup) -> Cost:
        """Return the cost of the run that `setup` describes."""
        e = setup.experiment
        sizes: Counter[tuple[int, int]] = Counter()
        examples: dict[tuple[int, int], np.ndarray] = {}
        clients = 0
        strategy = e.build("strategy")
        trains = strategy.trains
        for chosen in _rounds(setup, strategy):
            clients += len(chosen)
            for key, rows in _batches(setup, chosen, trains):
                sizes[key] += 1
                examples.setdefault(key, rows)
        steps, samples = sum(sizes.values()), sum(size * n for (size, _), n in sizes.items())
        payload = of_ends = 0
        if trains == "split":
            exchanges = [(n, *_exchange(setup, examples[key])) for key, n in sizes.items()]
            payload = sum(n * size for n, size, _ in exchanges)
            of_ends = sum(n * flops for n, _, flops in exchanges)
        step, evaluation = self._timed(setup)
        return Cost(
            steps=steps,
            samples=samples,
            payload_bytes=payload,
            head_bytes=clients * _weights_of_a_client(setup, trains),
            client_flops=samples * _flops_of_a_sample(setup, trains) + of_ends,
            seconds=steps * step + e.rounds * evaluation * _evaluated(setup),
            is_bound=e.budget != "none()",
        )

    def _timed(self, setup: Setup) -> tuple[float, float]:
        """Seconds of one local step on a whole batch, and of an evaluation."""
        e = setup.experiment
        key = (e.dataset, e.model, e.cut, e.end, e.codec, e.batch_size, len(setup.test.labels))
        if key not in self._seconds:
            self._seconds[key] = _time(setup)
        return self._seconds[key]


def _evaluated(setup: Setup) -> int:
    """Models that are evaluated each round: all clients' where they keep their own."""
    own = sum(len(part) > 0 for part in setup.train.partitions)
    return own if setup.experiment.build("strategy").keeps_models else 1


def _rounds(setup: Setup, strategy: SplitStrategy) -> Iterator[dict[Place, float]]:
    """Yield, for each round, where its clients begin, each with its share of the batch size."""
    e = setup.experiment
    population = setup.population()
    for number in range(1, e.rounds + 1):
        chosen = strategy.choose(population, number)
        yield {Place(e.seed, number, client, 0): share for client, share in chosen.items()}


def _batches(
    setup: Setup, chosen: Mapping[Place, float], trains: str
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Yield, for each step of a round, what decides its cost and its rows.

    That is the number of samples and the bits of the largest label.
    """
    schedule, train = setup.schedule(), setup.train
    if trains == "pooled":
        rows = np.concatenate(train.partitions)
        left = sum(schedule.num_samples(len(train.partitions[p.client])) for p in chosen)
        step = 0
        while left > 0:
            size = schedule.batch_samples(step, len(rows))
            yield (size, 0), rows[:size]
            left, step = left - size, step + 1
        return
    for place, share in chosen.items():
        rows, own = train.partitions[place.client], schedule.reduced(share)
        for step in range(own.num_steps(len(rows))):
            batch = rows[: own.batch_samples(step, len(rows))]
            bits = 0
            if trains == "split":
                batch = rows[own.batch(place, len(rows))]
                if setup.head.end is None:  # else labels stay where they are
                    bits = int(train.labels[batch].max()).bit_length()
            yield (len(batch), bits), batch
            place = place.next()


@torch.no_grad()
def _exchange(setup: Setup, rows: np.ndarray) -> tuple[int, int]:
    """Bytes of one exchange, all ways, and FLOPs of the end; values stand in for gradients."""
    build, place, head = setup.experiment.build, Place(0, 0, 0, 0), setup.head
    codec, downlink, train = build("codec"), build("downlink"), setup.train
    pixels, labels = train.batch(rows)
    sent = labels if head.end is None else torch.zeros_like(labels)
    payload = smash(head, codec, pixels, sent, train.num_classes, place)
    up = pack(codec, payload, place).to_bytes()
    values = codec.unpack(Payload.from_bytes(up)).values
    size = len(up) + pack(downlink, Payload(values), place).nbytes
    if head.end is None:
        return size, 0
    arrival = arrive(setup.tail, codec, Payload.from_bytes(up))
    output = traverse(setup.tail, [arrival], place).output
    size += 2 * pack(downlink, Payload({"tokens": output}), place).nbytes
    return size, tail_step(head.end, *output.shape[:2])


def _weights_of_a_client(setup: Setup, trains: str) -> int:
    """Bytes of synchronised weights of a client and round, up and down."""
    if trains == "pooled" or setup.experiment.build("strategy").keeps_models:
        return 0
    arrays = setup.initial_arrays()
    if trains == "whole":
        return 2 * messages.head_bytes(RecordDict({messages.WEIGHTS: arrays}))
    return 2 * messages.head_bytes(messages.start_of_round(1, arrays[messages.HEAD]))


def _flops_of_a_sample(setup: Setup, trains: str) -> int:
    if trains == "split":
        return head_step(setup.head, 1)
    return whole_step(setup.head, setup.tail, 1) if trains == "whole" else 0


def _time(setup: Setup) -> tuple[float, float]:
    """Time a step on a whole batch, and an evaluation from one batch."""
    e, train, test = setup.experiment, setup.train, setup.test
    head, tail = Flat(copy.deepcopy(setup.head)), Flat(copy.deepcopy(setup.tail))
    optimizers = [
        e.build("head_optimizer").build(head.vector),
        e.build("tail_optimizer").build(tail.vector),
    ]
    rows = np.concatenate(train.partitions)[: e.batch_size]
    batch = (e.build("codec"), *train.batch(rows), train.num_classes, Place(0, 0, 0, 0))
    images = test.batch(slice(0, EVALUATION_ROWS))[0]
    step = _least(lambda: train_step(head, tail, optimizers, *batch))
    part = _least(lambda: predict(head.module, tail.module, images))
    return step, -(-len(test.labels) // EVALUATION_ROWS) * part


def _least(work: Callable[[], object], repeats: int = 4) -> float:
    """CPU time of the quickest of several times: the first ones are slow."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)
