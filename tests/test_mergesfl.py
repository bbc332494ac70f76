"""MergeSFL: one merged batch, sizes by speed, clients whose labels add up to everyone's."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from flwr.app import Message
from scipy.stats import entropy
from torch.nn import functional

from fl_split.exchange.records import HELD
from fl_split.seeds import StepId, generator
from simulations.clients import client_app
from simulations.clients.epochs import Epochs
from simulations.engines.local_grid import LocalGrid
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies import NoClientsLeft
from strategies.mergesfl import MergeSFL, nearest_to_all
from strategies.server import flower_messages
from strategies.server.assignment import Assignment
from strategies.server.participants import Population

FOUR = {
    "strategy": "mergesfl(slowest=0.1)",
    "clients": 4,
    "rounds": 1,
    "local_steps": 1,
    "batch_size": 40,
    "partition": "dirichlet(alpha=0.5)",
}


def test_one_exchange_is_one_step_on_the_concatenated_batches(simulate):
    """The tail as in a bare loop over one batch; heads as their own losses and rates say."""
    values = {**FOUR, "head_optimizer": "sgd(lr=0.5)", "tail_optimizer": "sgd(lr=0.3)", "cut": 1}
    outcome = simulate(**values)
    setup = prepare(Experiment.from_dict(outcome.summary["experiment"]))
    asked = MergeSFL(slowest=0.1).choose(setup.population(), 1)
    model, batches = setup.model, []
    for client, rows in enumerate(setup.train.partitions):
        order = torch.randperm(len(rows), generator=generator(0, "batches", 1, client, 0))
        size = asked[client].batch_size
        batches.append(setup.train.batch(rows[order.numpy()][:size]))
    pixels, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert len({len(labels) for _, labels in batches}) > 1
    functional.cross_entropy(model(pixels).logits, labels).backward()
    merged = {name: p.grad.clone() for name, p in model.named_parameters()}
    heads = []
    for client, (pixels, targets) in enumerate(batches):
        model.zero_grad()
        functional.cross_entropy(model(pixels).logits, targets).backward()
        rate = 0.5 * asked[client].rate * len(targets) / len(labels)
        heads.append({name: rate * p.grad for name, p in model.named_parameters()})
    for name, before in model.state_dict().items():
        is_head = "embeddings" in name or "layers.0." in name
        step = sum(head[name] for head in heads) if is_head else 0.3 * merged[name]
        torch.testing.assert_close(outcome.model[name], before - step, atol=1e-5, rtol=1e-4)


def test_batches_are_as_small_as_devices_are_slow(simulate):
    outcome = simulate(**FOUR)
    taken = outcome.clients.sort_values("client")["samples"].tolist()
    draws = [
        torch.rand((), dtype=torch.float64, generator=generator(0, "speed", k)).item()
        for k in range(4)
    ]
    speeds = [0.1**draw for draw in draws]
    held = [len(rows) for rows in prepare(experiment(outcome)).train.partitions]
    assert taken == [
        min(n, math.floor(40 * v / max(speeds))) for n, v in zip(held, speeds, strict=True)
    ]
    assert min(taken) < max(taken) == 40


def experiment(outcome) -> Experiment:
    return Experiment.from_dict(outcome.summary["experiment"])


def test_equal_devices_that_all_take_part_are_sfl(simulate):
    """Batches of one size and clients that hold (nearly) the same: n_k / n is the same."""
    even = {"partition": "iid", "local_steps": 3, "rounds": 2}
    even |= {"head_optimizer": "sgd(lr=0.1)", "tail_optimizer": "sgd(lr=0.1)"}
    first, second = simulate(strategy="mergesfl", **even), simulate(strategy="parallel", **even)
    for name, value in first.model.items():
        torch.testing.assert_close(value, second.model[name], atol=1e-4, rtol=1e-2)
    assert first.rounds["samples"].tolist() == second.rounds["samples"].tolist()


def test_chooses_the_clients_whose_labels_add_up():
    """Two of four halves make a whole: greedy finds the partner that exhaustive search finds."""
    labels = {0: [10, 10, 0, 0], 1: [9, 11, 0, 0], 2: [0, 0, 8, 8], 3: [10, 0, 10, 0]}
    sizes = dict.fromkeys(labels, 4)
    assert nearest_to_all([0, 1, 3, 2], 2, sizes, labels) == [0, 2]

    def distance(pair):
        merged = sum(np.array(labels[k]) / sum(labels[k]) for k in pair)
        return entropy(merged, np.sum([*labels.values()], axis=0))

    assert min(combinations(labels, 2), key=distance) == (0, 2)


def test_a_slow_device_counts_for_less_in_the_merged_labels():
    """Beside client 0, a small batch of the other class is further from half and half."""
    labels = {0: [10, 0], 1: [0, 10], 2: [4, 6]}
    assert nearest_to_all([0, 1, 2], 2, {0: 10, 1: 10, 2: 10}, labels) == [0, 1]
    assert nearest_to_all([0, 1, 2], 2, {0: 10, 1: 1, 2: 10}, labels) == [0, 2]


def test_so_does_one_that_cannot_fill_a_batch():
    """Two samples of the other class are less than five of a mixture, whatever the batch size."""
    samples = {0: 10, 1: 2, 2: 10}
    labels = {0: [10, 0], 1: [0, 2], 2: [4, 6]}
    people = Population(samples, labels, 2 / 3, 10, 0)
    rounds = [MergeSFL(candidates=3.0).choose(people, number) for number in range(1, 30)]
    first = [people.shuffled(number)[0] for number in range(1, 30)]
    pairs = {tuple(chosen) for chosen, one in zip(rounds, first, strict=True) if one == 0}
    assert pairs == {(0, 2)}


def test_merged_labels_are_nearer_to_all_than_those_of_a_random_draw(simulate):
    """Measured on the batches that are merged: up to 16 samples of what a client holds."""
    values = {"clients": 50, "partition": "dirichlet(alpha=0.1)", "strategy": "mergesfl"}
    setup = prepare(Experiment.from_dict({**values, "fraction": 0.2, "batch_size": 16}))
    people, epochs = setup.population(), setup.epochs()
    whole = np.bincount(setup.train.labels[np.concatenate(setup.train.partitions)])

    def distances(strategy):
        for number in range(1, 21):
            chosen = strategy.choose(people, number)
            assert len(chosen) == 10 and list(chosen) == sorted(chosen)
            rows = [
                part[epochs.batch(StepId(0, number, client, 0), len(part))]
                for client, part in enumerate(setup.train.partitions)
                if client in chosen
            ]
            merged = np.bincount(setup.train.labels[np.concatenate(rows)], minlength=10)
            yield entropy(merged, whole)

    random, near = (np.mean([*distances(MergeSFL(candidates=c))]) for c in (1.0, 3.0))
    assert near < random / 2


def test_everyone_is_chosen_at_some_time():
    labels = {k: [5 * (k % 2), 5 * (1 - k % 2)] for k in range(20)}
    people = Population(dict.fromkeys(range(20), 5), labels, 0.2, 16, 0)
    rounds = [MergeSFL().choose(people, number) for number in range(1, 41)]
    assert {client for chosen in rounds for client in chosen} == set(range(20))


@pytest.fixture
def asked(monkeypatch):
    """Let our grids keep to themselves what clients hold, as Flower's do."""
    monkeypatch.delattr(LocalGrid, "describe")


@pytest.mark.usefixtures("asked")
def test_only_strategies_that_need_label_counts_are_told_them(simulate):
    told = {}

    def watch(message: Message, context):
        reply = client_app.app(message, context)
        if flower_messages.read(message).action in {
            flower_messages.SAMPLE_COUNT,
            flower_messages.LABEL_COUNTS,
        }:
            answer = flower_messages.read(reply)
            told[context.node_config["partition-id"]] = answer.list(flower_messages.NUM_LABELS)
            assert answer.number(HELD) > 0
        return reply

    simulate(watch, rounds=1, local_steps=1)
    assert set(map(tuple, told.values())) == {()}
    outcome = simulate(watch, **FOUR)
    train = prepare(experiment(outcome)).train
    counts = [np.bincount(train.labels[rows], minlength=10).tolist() for rows in train.partitions]
    assert [told[k] for k in range(4)] == counts


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("counts", [[1, 2], [], [-1] * 10, [10**9] + [0] * 9])
def test_counts_that_cannot_be_end_the_run_at_once(simulate, counts):
    def lie(message: Message, context):
        reply = client_app.app(message, context)
        is_liar = context.node_config["partition-id"] == 2
        if flower_messages.read(message).action == flower_messages.LABEL_COUNTS and is_liar:
            numbers = reply.content.metric_records[flower_messages.NUMBERS_PART]
            numbers[flower_messages.NUM_LABELS] = counts
        return reply

    with pytest.raises(NoClientsLeft, match="client 2 said it holds"):
        simulate(lie, **FOUR)


def test_a_share_of_the_batch_size_is_rounded_down_but_never_to_nothing():
    labels = {client: [50, 50] for client in range(200)}
    people = Population(dict.fromkeys(labels, 100), labels, 1.0, 16, 0)
    asked = MergeSFL(slowest=0.01).choose(people, 1).values()
    assert {one.batch_size for one in asked} >= {1, 2, 4, 8, 16}
    assert all(one.batch_size == max(1, math.floor(16 * one.rate)) for one in asked)
    assert min(one.rate for one in asked) < 1 / 16 and max(one.rate for one in asked) == 1


@pytest.mark.parametrize("size", [16, 8, 4, 1])
def test_a_client_takes_batches_of_the_size_that_it_is_asked_for(size):
    epochs = Epochs(0, 16, 1, 0).asked(Assignment(batch_size=size))
    assert epochs.batch_samples(0, 100) == size
    assert epochs.num_steps(100) == math.ceil(100 / size)
