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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
from rich.filesize import decimal
from rich.table import Table

from fl_split.accelerators import wait_for
from fl_split.exchange.account import weights_bytes
from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.protocol import Batch
from fl_split.exchange.records import BEGIN, HEAD, ROUND, Record, Weights
from fl_split.exchange.served import HalfServed
from fl_split.exchange.whole import predict
from fl_split.flat import Flat, flatten, travelling
from fl_split.models.cut import Head
from fl_split.models.parts import Parts
from fl_split.recipe.descent import Descent, descend
from fl_split.recipe.schedules import ONLY
from fl_split.seeds import StepId
from simulations.clients.pool import ClientPool
from simulations.data.ragged import Ragged
from simulations.report.text_table import text_table
from simulations.runs.evaluator import EVALUATION_ROWS
from simulations.runs.setup import Setup
from simulations.studies.cells import Cell
from strategies import Strategy
from strategies.server.assignment import USUAL, Assignment
from strategies.server.threads import available_cores

DRAWN = 16
"""Exchanges that are rehearsed of each kind, where a codec draws how much it sends."""


@dataclass(frozen=True)
class RunCost:
    """What a whole run costs.

    `seconds` are CPU time of one thread that trains and evaluates, or time of a GPU, without start
    and messages.
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

    def __call__(self, setup: Setup) -> RunCost:
        """Return the cost of the run that `setup` describes."""
        e = setup.experiment
        crossing: Counter[tuple[int, int, int]] = Counter()
        examples: dict[tuple[int, int, int], list[tuple[StepId, Assignment]]] = {}
        most = DRAWN if e.parts.codec.draws_size else 1
        synced = steps = samples = flops = 0
        strategy, population, each = e.parts.strategy, setup.population(), _flops_by_round(setup)
        weights, rounds = _weights_by_head(setup), dict[int, list[int]]()
        for number in range(1, e.rounds + 1):
            chosen = strategy.choose(population, number)
            if setup.exchange.only_sends(number):  # who has sent is not asked again
                chosen = {client: one for client, one in chosen.items() if client not in rounds}
            else:
                synced += sum(weights[setup.head_of(client)] for client in chosen)
            for client in () if setup.exchange.is_silent(number) else chosen:
                rounds.setdefault(client, []).append(number)
            for sizes, example in _batches(setup, strategy, number, chosen):
                head = setup.head_of(example[0].client)
                key = *sizes, head.num_stages
                steps, samples = steps + 1, samples + key[0]
                flops += key[0] * each[number, head]
                is_sent = not example[0].step % setup.exchange.every
                if is_sent and not setup.exchange.is_silent(number):
                    crossing[key] += 1
                    if len(known := examples.setdefault(key, [])) < most:
                        known.append(example)
        synced += sum(strategy.bytes_beside(setup.head_of(k), n) for k, n in rounds.items())
        payload = of_answers = 0
        if strategy.sends_smashed_data:
            rehearsal = Rehearsal(replace(setup, head=setup.head.drawn_at(0.5)))
            for key, count in crossing.items():
                found = [rehearsal(*example) for example in examples[key]]
                payload += count * sum(size for size, _ in found) // len(found)
                of_answers += count * found[0][1]
        step, evaluation = self._timed(setup)
        own = int((Ragged.of(setup.train.partitions).sizes > 0).sum())
        return RunCost(
            steps=steps,
            samples=samples,
            payload_bytes=payload,
            head_bytes=synced,
            client_flops=0 if strategy.trains_on_server else flops + of_answers,
            seconds=steps * step + e.rounds * evaluation * (own if strategy.keeps_models else 1),
            is_bound=e.budget != "none()",
        )

    def _timed(self, setup: Setup) -> tuple[float, float]:
        """Seconds of one local step on a whole batch, and of an evaluation."""
        e = setup.experiment
        kind = e.strategy if setup.exchange.is_one_way else ""
        of_model, of_data = (e.model, e.cut, e.end, e.tokens, e.codec, kind), setup.test.labels
        key = e.dataset, *of_model, e.batch_size, len(of_data)
        if key not in self._seconds:
            self._seconds[key] = _time(setup)
        return self._seconds[key]


def _flops_by_round(setup: Setup) -> dict[tuple[int, Head], int]:
    """Return a client's operations on one image, by round and by its head.

    Only phases differ, the first round, and rounds in which clients but send.
    """
    phases, exchange = setup.parts.phases, setup.exchange
    known, found = dict[tuple[Parts, bool, bool, Head], int](), dict[tuple[int, Head], int]()
    for number in range(1, setup.experiment.rounds + 1):
        for head in setup.heads:
            kind = phases.trains(number), number == 1, exchange.only_sends(number), head
            if kind not in known:
                known[kind] = exchange.flops_of_round(number, head, setup.tail).total
            found[number, head] = known[kind]
    return found


def cost_table(
    found: Sequence[Cell], costs: Sequence[tuple[Cell, RunCost]], start: float, width: int
) -> tuple[Table, str]:
    """Lay out what each cell will cost, and say what all of them will.

    Parameters
    ----------
    found : sequence of Cell
        All cells of the study; those without a cost are finished.
    costs : sequence of (Cell, RunCost)
        The cells that are left to be run.
    start : float
        CPU seconds that each of them takes before it trains.
    width : int
        Characters of the table.
    """
    seconds = start * len(costs) + sum(cost.seconds for _, cost in costs)
    bounds = {cell.name for cell, cost in costs if cost.is_bound or cell.until}
    rows, waiting = [], {cell.name for cell, _ in costs}
    for cell, cost in costs:
        sizes = [decimal(n) for n in (cost.payload_bytes, cost.head_bytes)]
        cpu = f"{timedelta(seconds=round(cost.seconds))}{'*' * (cell.name in bounds)}"
        flops = f"{cost.client_flops / 1e12:,.3g}"
        rows.append([cell.name, f"{cost.steps:,}", *sizes, flops, cpu])
    rows += [[cell.name, "finished", *[""] * 4] for cell in found if cell.name not in waiting]
    titles = ["cell", "steps", "payload", "weights", "client TFLOPs", "CPU"]
    caption = (
        "Payload and weights: both directions, all clients and rounds. CPU: training and "
        "evaluation on one thread, from a timed step, without the start."
        + (" *: a budget may end it earlier." if bounds else "")
    )
    table = text_table(titles, rows, width, spare=("steps", "client TFLOPs"), caption=caption)
    about, in_all = "at most" if bounds else "some", timedelta(seconds=round(seconds))
    return table, (
        f"{len(found)} cells, {len(costs)} to run: {about} {in_all} of CPU time, "
        f"{start:.0f} s of it per start of a run, on {available_cores()} cores"
    )


def _batches(
    setup: Setup, strategy: Strategy, number: int, chosen: Mapping[int, Assignment]
) -> Iterator[tuple[tuple[int, int], tuple[StepId, Assignment]]]:
    """Yield the two numbers that decide the cost of each step of a round, and the step.

    The numbers are the samples of the step and the bits of the largest label that is sent.
    """
    epochs, train, seed = setup.epochs(), setup.train, setup.experiment.seed
    if strategy.trains_on_server:
        rows = len(Ragged.of(train.partitions).flat)
        left, step = sum(epochs.num_samples(len(train.partitions[k])) for k in chosen), 0
        while left > 0:
            size = epochs.batch_samples(step, rows)
            yield (size, 0), (StepId(seed, number, 0, step), USUAL)
            left, step = left - size, step + 1
        return
    has_labels = strategy.sends_smashed_data and setup.head.end is None
    for client, assignment in chosen.items():
        held, own = train.partitions[client], epochs.asked(assignment)
        for step in range(own.num_steps(len(held))):
            at = StepId(seed, number, client, step)
            size, bits = own.batch_samples(step, len(held)), 0
            if has_labels:
                bits = int(train.labels[held[own.batch(at, len(held))]].max()).bit_length()
            yield (size, bits), (at, assignment)


class Rehearsal:
    """Performs single exchanges of a run with its initial weights, and counts them."""

    def __init__(self, setup: Setup) -> None:
        worker = setup.worker(stack=1)
        self.pool, self.tail = ClientPool(worker), Flat(worker.tail)
        self.weights = {HEAD: setup.initial_weights()[HEAD]}
        self.stand_ins = setup.stand_ins(GraphMemory())

    def __call__(self, at: StepId, assignment: Assignment) -> tuple[int, int]:
        """Return bytes that cross, both ways, and operations of the client's answers."""
        client = self.pool.lend(at.client)
        numbers = {ROUND: at.round, **assignment.numbers()}
        own = self.stand_ins.begin(at.client, self.weights, assignment.rate)
        client.begin(Record(BEGIN, weights=own, numbers=numbers))
        client.place = at
        exchange, link, flops = client.worker.exchange, client.link.renewed(), 0
        sent = [exchange.send(client).sent()]
        if exchange.is_one_way:
            self.pool.take_back(client)
            return len(sent[0]), 0
        receiver = self.stand_ins.receiver(at.client, self.tail.module)
        arrival, _ = self.stand_ins.forward(at.client, link.arrive(sent[0], at, receiver), at)
        arrivals = {at.client: arrival}
        result = exchange.serve(self.tail, arrivals, {at.client: 1.0}, at, GraphMemory())
        if isinstance(result, HalfServed):
            output = result.outputs[at.client]
            sent.append(link.across(output, at, "output"))
            answer = exchange.receive(client, Record(result.action, sent[-1]))
            assert answer is not None
            sent.append(answer.sent())
            flops = exchange.answer_flops(client.head.module, output)
            result = result.resume({at.client: result.read(at.client, link, answer)})
        cut, _ = self.stand_ins.backward(at.client, result.cuts[at.client])
        sent.append(exchange.answer(link, cut, at).sent())
        self.pool.take_back(client)
        return sum(map(len, sent)), flops


def _weights_by_head(setup: Setup) -> dict[Head, int]:
    """Return bytes of synchronised weights for one client and round, up and down, by its head."""
    strategy, exchange = setup.parts.strategy, setup.exchange
    if strategy.trains_on_server or strategy.keeps_models:
        return dict.fromkeys(setup.heads, 0)
    weights, found = setup.initial_weights(), {}
    for head in setup.heads:
        own = Weights.of(flatten(travelling(head)).cpu().numpy())
        record = Record(BEGIN, weights=exchange.travelling({**weights, HEAD: own}))
        found[head] = 2 * weights_bytes(record)
    return found


def _time(setup: Setup) -> tuple[float, float]:
    """Time a step on a whole batch, and an evaluation from one batch."""
    e, train, test, device = setup.experiment, setup.train, setup.test, setup.device
    head = Flat(copy.deepcopy(setup.head).to(device))
    tail = Flat(copy.deepcopy(setup.tail).to(device))
    recipe = setup.recipe()
    descents = [
        Descent(head, e.parts.head_optimizer, recipe),
        Descent(tail, e.parts.tail_optimizer, recipe),
    ]
    pixels, labels = train.batch(Ragged.of(train.partitions).flat[: e.batch_size], device)
    batch, link = Batch(pixels, labels, train.num_classes), e.parts.link(device)
    take = setup.exchange.step

    def step() -> None:
        found = take(head, tail, link, batch, StepId(0, 0, 0, 0))
        descend(descents, [found.of_head, found.of_tail], ONLY)

    images = test.batch(slice(0, EVALUATION_ROWS), device)[0]
    part = _least(lambda: predict(head.module, tail.module, images), device)
    return _least(step, device), -(-len(test.labels) // EVALUATION_ROWS) * part


def _least(work: Callable[[], object], device: torch.device, repeats: int = 4) -> float:
    """Return the seconds of the quickest of several calls: the first ones are slow.

    They are CPU seconds, or on a GPU those of the clock on the wall.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats):
        wait_for(device)
        began = clock()
        work()
        wait_for(device)
        times.append(clock() - began)
    return min(times)
