"""The clock: closed forms of two clients, queues, pools, energy; laws of any graph."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from simulations.system.clock import Conditions, time_round
from simulations.system.devices import Device, Fleet
from simulations.system.graph import Graph
from simulations.system.networks import Cell, Roads, fair_shares
from simulations.system.spending import spent
from simulations.system.traces import Trace
from strategies.server.tasks import SERVER, Task, in_order

FLOPS, BACKWARD = np.array([2e6, 1e6]), np.array([2.0, 4.0])
UP, DOWN, LATENCY = np.array([1e5, 4e5]), np.array([8e5, 2e5]), np.array([0.01, 0.02])
SERVER_FLOPS = 1e7


def conditions(**changes):
    values = {
        "flops": FLOPS, "backward": BACKWARD, "roads": Roads(UP, DOWN, LATENCY),
        "server_flops": SERVER_FLOPS, **changes,
    }  # fmt: skip
    return Conditions(**values)


@pytest.fixture
def round_of(simulate):
    """Return the recorded tasks of one round of two clients that train the same batches."""

    def once(strategy, **changes):
        found = []
        simulate(
            watch=lambda row, result: found.append(result.tasks), strategy=strategy, rounds=1,
            clients=2, batch_size=8, partition="iid()", **{"local_steps": 2, **changes},
        )  # fmt: skip
        return found[0]

    return once


class Amounts:
    """How long each piece of work of a client takes, by hand from a task's amount."""

    def __init__(self, tasks):
        self.tasks = tasks

    def amount(self, kind, client, step=0):
        (found,) = [
            t.amount for t in self.tasks
            if (t.kind, t.step) == (kind, step) and t.client in {client, SERVER}
        ]  # fmt: skip
        return found

    def up(self, kind, k, step=0):
        return LATENCY[k] + 8 * self.amount(kind, k, step) / UP[k]

    def down(self, kind, k, step=0):
        return LATENCY[k] + 8 * self.amount(kind, k, step) / DOWN[k]

    def forward(self, k, step=0):
        return self.amount("forward", k, step) / FLOPS[k]

    def backward(self, k, step=0):
        """Operations of a backward pass are twice those of forward; a device has its own ratio."""
        return self.amount("backward", k, step) / 2 * BACKWARD[k] / FLOPS[k]

    def serves(self):
        return [t.amount / SERVER_FLOPS for t in self.tasks if t.kind == "serve"]


def last_step(tasks, client):
    return max(t.step for t in tasks if t.client == client and t.kind == "sync up")


def test_parallel_is_a_barrier_in_each_exchange(round_of):
    tasks = round_of("parallel")
    a, now = Amounts(tasks), np.zeros(2)
    for k in (0, 1):
        now[k] = a.down("sync down", k)
    for step, served in enumerate(a.serves()):
        for k in (0, 1):
            now[k] += a.forward(k, step) + a.up("up", k, step)
        now[:] = now.max() + served
        for k in (0, 1):
            now[k] += a.down("down", k, step) + a.backward(k, step)
    for k in (0, 1):
        now[k] += a.up("sync up", k, last_step(tasks, k))
    assert time_round(Graph.of(tasks), conditions()).seconds == pytest.approx(now.max(), rel=1e-12)


def test_clients_of_sflv1_are_chains_that_meet_in_the_servers_queue(round_of):
    """One step each: who comes second waits for the first, with a second core for nobody."""
    tasks = round_of("sflv1", local_steps=1)
    a = Amounts(tasks)
    (served, _) = a.serves()
    came = [a.down("sync down", k) + a.forward(k) + a.up("up", k) for k in (0, 1)]
    first, second = np.argsort(came)
    left = [
        a.down("down", k) + a.backward(k) + a.up("sync up", k, last_step(tasks, k)) for k in (0, 1)
    ]
    slow = SERVER_FLOPS / 1e4  # so that the queue is long
    begun = {first: came[first], second: max(came[second], came[first] + served * 1e4)}
    ends = [begun[k] + served * 1e4 + left[k] for k in (0, 1)]
    queue = time_round(Graph.of(tasks), conditions(server_flops=slow))
    assert begun[second] > came[second]
    assert queue.seconds == pytest.approx(max(ends), rel=1e-12)
    two = time_round(Graph.of(tasks), conditions(server_flops=slow, cores=2))
    alone = [came[k] + served * 1e4 + left[k] for k in (0, 1)]
    assert two.seconds == pytest.approx(max(alone), rel=1e-12)


def test_sflv2_serves_the_second_client_when_the_first_has_none_left(round_of):
    tasks = round_of("sflv2(order='cyclic')")
    a = Amounts(tasks)
    serves = a.serves()
    now = a.down("sync down", 0)
    for step in (0, 1):
        now += a.forward(0, step) + a.up("up", 0, step) + serves[step]
        free = now
        now += a.down("down", 0, step) + a.backward(0, step)
    first = now + a.up("sync up", 0, last_step(tasks, 0))
    now = a.down("sync down", 1)
    for step in (0, 1):
        now = max(now + a.forward(1, step) + a.up("up", 1, step), free if step == 0 else 0)
        now += serves[2 + step] + a.down("down", 1, step) + a.backward(1, step)
    second = now + a.up("sync up", 1, last_step(tasks, 1))
    found = time_round(Graph.of(tasks), conditions()).seconds
    assert found == pytest.approx(max(first, second), rel=1e-12)


def test_sequential_is_a_sum(round_of):
    tasks = round_of("sequential(order='cyclic')")
    a, serves, now = Amounts(tasks), iter(Amounts(tasks).serves()), 0.0
    for k in (0, 1):
        now += a.down("sync down", k)
        for step in (0, 1):
            now += a.forward(k, step) + a.up("up", k, step) + next(serves)
            now += a.down("down", k, step) + a.backward(k, step)
        now += a.up("sync up", k, last_step(tasks, k))
    assert time_round(Graph.of(tasks), conditions()).seconds == pytest.approx(now, rel=1e-12)


def test_fedavg_takes_as_long_as_its_slowest_client(round_of):
    """A step of a whole model is one part forward and two backward, by operations."""
    tasks = round_of("fedavg")
    a = Amounts(tasks)
    times = [
        a.down("sync down", k)
        + a.amount("train", k) / 3 * (1 + BACKWARD[k]) / FLOPS[k]
        + a.up("sync up", k, last_step(tasks, k))
        for k in (0, 1)
    ]
    found = time_round(Graph.of(tasks), conditions()).seconds
    assert found == pytest.approx(max(times), rel=1e-12)


def test_a_step_in_a_ushape_crosses_four_times(round_of):
    tasks = round_of("sequential(order='cyclic')", end=2, local_steps=1, cut=1)
    a, now = Amounts(tasks), 0.0
    middles = [t.amount / SERVER_FLOPS for t in tasks if t.kind == "middle"]
    for k, (served, middle) in enumerate(zip(a.serves(), middles, strict=True)):
        now += a.down("sync down", k) + a.forward(k) + a.up("up", k) + middle
        now += a.down("output down", k) + a.amount("end", k) / 3 * (1 + BACKWARD[k]) / FLOPS[k]
        now += a.up("output gradient up", k) + served + a.down("down", k) + a.backward(k)
        now += a.up("sync up", k, last_step(tasks, k))
    assert time_round(Graph.of(tasks), conditions()).seconds == pytest.approx(now, rel=1e-12)


def transfers(*amounts):
    return Graph.of([Task("up", k, 0, amount, ()) for k, amount in enumerate(amounts)])


def test_a_pool_is_shared_until_one_transfer_ends():
    """A pool of 1 kbit/s: 1,000 and 500 bit share it; then the first has all of it."""
    roads = Roads(np.full(2, 1e3), np.full(2, 1e3), np.zeros(2))
    found = time_round(transfers(125, 62), conditions(roads=roads, pool=1e3))
    assert found.end.tolist() == pytest.approx([(1000 + 496) / 1000, 2 * 496 / 1000])
    alone = time_round(transfers(125, 62), conditions(roads=roads))
    assert alone.end.tolist() == pytest.approx([1.0, 0.496])


def test_a_narrow_road_leaves_its_share_to_others():
    """Pool of 1,000: a road of 100 takes 100, the other two 450 each."""
    assert fair_shares(np.array([1e3, 100.0, 1e3]), 1000.0).tolist() == [450, 100, 450]


@given(roads=st.lists(st.floats(0.1, 100), min_size=1, max_size=6), pool=st.floats(0.1, 200))
@settings(deadline=None, max_examples=50)
def test_fair_shares_are_those_of_linear_programs(roads, pool):
    """Max-min fairness: raise the least share as far as it goes, fix who cannot rise, repeat."""
    count, fixed = len(roads), {}
    while len(fixed) < count:
        free = [k for k in range(count) if k not in fixed]
        rows = [[-float(j == k) for j in range(count)] + [1.0] for k in free]
        rows.append([1.0] * count + [0.0])
        bounds = [(fixed[k], fixed[k]) if k in fixed else (0, roads[k]) for k in range(count)]
        best = linprog([0.0] * count + [-1.0], rows, [0.0] * len(free) + [pool],
                       bounds=[*bounds, (0, None)])  # fmt: skip
        level = best.x[-1]
        stuck = [k for k in free if roads[k] <= level + 1e-7] or free
        fixed |= {k: min(level, roads[k]) for k in stuck}
    found = fair_shares(np.array(roads), pool)
    assert found == pytest.approx([fixed[k] for k in range(count)], abs=1e-5)


def test_the_radio_of_gas_has_its_printed_rate():
    """25.95 Mbit/s at 0.608 km, rounded to metres (Liao et al., ICML 2025, official code)."""
    least, most = (Cell().rate(np.array([km]), 0.2)[0] for km in (0.6085, 0.6075))
    assert least < 25.95e6 < most


def random_graph(seed, clients=3, steps=3):
    """Return a graph of clients that are served one by one, in an order of arrival."""
    draw = random.Random(seed)
    tasks, last, tail = [], {}, []

    def add(kind, client, step, *after):
        tasks.append(Task(kind, client, step, draw.randrange(1, 5000), after))
        return len(tasks) - 1

    for k in range(clients):
        last[k] = add("sync down", k, 0)
    for step in range(steps):
        order = list(range(clients))
        draw.shuffle(order)
        for k in order:
            last[k] = add("up", k, step, add("forward", k, step, last[k]))
            served = add("serve", SERVER, step, last[k], *tail)
            last[k] = add("backward", k, step, add("down", k, step, last[k], served))
            tail = [add("step", SERVER, step, served)] if draw.random() < 0.3 else []
    return tasks


@given(seed=st.integers(0, 10**6), factor=st.floats(1, 10), cores=st.integers(1, 3))
@settings(deadline=None, max_examples=50)
def test_more_of_anything_is_never_slower_if_the_server_keeps_its_order(seed, factor, cores):
    """In the order of arrival it may be: who comes earlier may delay somebody who matters more."""
    graph = Graph.of(random_graph(seed))
    flops, roads = np.array([1e5, 3e5, 2e4]), Roads(np.full(3, 1e4), np.full(3, 3e4), np.zeros(3))
    base = {"flops": flops, "backward": np.full(3, 2.0), "roads": roads, "in_order": True,
            "cores": cores, "server_flops": 1e5}  # fmt: skip
    slow = time_round(graph, Conditions(**base)).seconds
    faster = [
        {"roads": Roads(roads.up * factor, roads.down, roads.latency)},
        {"roads": Roads(roads.up, roads.down * [factor, 1, 1], roads.latency)},
        {"flops": flops * [1, factor, 1]},
        {"server_flops": 1e5 * factor},
        {"cores": cores + 1},
    ]
    for change in faster:
        assert time_round(graph, Conditions(**{**base, **change})).seconds <= slow * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_recording_changes_no_number(seed):
    """Recorded in another order of arrival, a graph is written down in the same way."""
    tasks = in_order(random_graph(seed))
    draw, left, done, order = random.Random(seed), set(range(len(tasks))), set(), []
    while left:
        ready = sorted(n for n in left if set(tasks[n].after) <= done)
        order.append(draw.choice(ready))
        left.discard(order[-1])
        done.add(order[-1])
    number = {old: new for new, old in enumerate(order)}
    other = [tasks[n]._replace(after=tuple(number[m] for m in tasks[n].after)) for n in order]
    assert in_order(other) == tasks != other


def fleet(clients):
    device = Device("d", "", 1e5, 2.0, 1e9, 3.0, 2.0, 1.0, 0.5)
    return Fleet((device,), np.zeros(clients, dtype=np.int64), np.full(clients, 1e5))


@pytest.mark.parametrize("seed", range(3))
def test_seconds_and_joules_add_up(seed):
    """All seconds of a client, and of the critical path, are the round's."""
    graph = Graph.of(random_graph(seed))
    roads = Roads(np.full(3, 1e4), np.full(3, 3e4), np.full(3, 0.01))
    now = Conditions(np.full(3, 1e5), np.full(3, 2.0), roads, 2e4)
    found = spent(graph, now, fleet(3))
    parts = found.compute, found.send, found.receive, found.wait, found.idle
    assert sum(parts).tolist() == pytest.approx([found.seconds] * 3)
    assert sum(found.shares.values()) == pytest.approx(found.seconds)
    joules = 3 * found.compute + 2 * found.send + found.receive + 0.5 * found.wait
    assert found.joules.tolist() == pytest.approx(joules.tolist())
    amounts = {kind: sum(a for a, c in zip(graph.amounts[graph.are(kind)], itertools.count()))
               for kind in ("up", "serve", "step")}  # fmt: skip
    assert found.send.sum() == pytest.approx(8 * amounts["up"] / 1e4)
    first = found.wait.min()
    assert first >= 0.01 * 7 * (1 - 1e-9), "latency of 3 payloads, 3 gradients and the weights"
    assert found.server_busy == pytest.approx((amounts["serve"] + amounts["step"]) / 2e4)


def test_ties_go_to_the_lower_client():
    tasks = [Task("up", k, 0, 100, ()) for k in (1, 0)]
    tasks += [Task("serve", SERVER, 0, 1000, (n,)) for n in (0, 1)]
    roads = Roads(np.full(2, 1e3), np.full(2, 1e3), np.zeros(2))
    found = time_round(Graph.of(in_order(tasks)), conditions(roads=roads, server_flops=1e3))
    assert found.begin.tolist() == [0.0, 0.0, 0.8, 1.8]


def test_a_trace_carries_bits_as_its_rates_change():
    """100 bit/s for 1 s, none for 1 s, 50 bit/s for 1 s, and so on: 150 bits in 3 s."""
    trace = Trace([0.0, 1.0, 2.0], [100.0, 0.0, 50.0], 3.0)
    cases = {(0.0, 50): 0.5, (0.0, 100): 1.0, (0.0, 125): 2.5, (0.5, 75): 2.5, (0.0, 150): 3.0,
             (0.0, 200): 3.5, (0.0, 1500): 30.0, (0.0, 1525): 30.25, (30.5, 50): 31.0,
             (1.5, 1): 2.02}  # fmt: skip
    for (begin, bits), end in cases.items():
        assert trace.end(begin, bits) == pytest.approx(end)


def test_transfers_over_traced_roads_begin_where_the_round_does():
    road = Trace([0.0, 1.0], [1000.0, 10.0], 2.0)
    roads = Roads(np.ones(2), np.ones(2), np.array([0.0, 0.5]), [road] * 2, [road] * 2)
    found = time_round(transfers(100, 50), conditions(roads=roads, begin=4.0))
    assert found.end.tolist() == pytest.approx([0.8, 0.9])
    late = time_round(transfers(1, 1), conditions(roads=roads, begin=5.0))
    assert late.end.tolist() == pytest.approx([0.8, 1.003])  # 5 of 8 bits by 1 s, then 1,000 a s
