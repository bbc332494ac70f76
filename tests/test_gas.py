"""GAS: who is served when, moments of classes, what is drawn, and what the tail learns from."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fl_split.seeds import generator
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from simulations.system.clock import time_round
from simulations.system.graph import Graph
from simulations.system.system import Timed, parse_system
from strategies.gas import ClassStatistics

PLAIN = "gas(generate=False, adjustment=0.0)"
UNEQUAL = "network('200kbit/s', '1Mbit/s', law='lognormal', spread=1.0)"
"""Clients of very different speeds."""
RUN = {
    "strategy": "gas()", "system": UNEQUAL, "clients": 4, "batch_size": 16, "local_steps": 4,
    "partition": "dirichlet(alpha=0.5)", "rounds": 2,
}  # fmt: skip


# Moments.


def test_moments_of_classes_are_weighted_ones_of_all_rows():
    draw = np.random.default_rng(0)
    nothing = torch.zeros(3, 5)
    found, rows, labels, counts = ClassStatistics(torch.zeros(3), nothing, nothing), [], [], []
    for size in (7, 1, 12):
        rows.append(draw.normal(3, 2, (size, 5)).astype(np.float32))
        labels.append(draw.integers(0, 2, size))  # of class 2 there is nothing
        counts.append(draw.integers(1, 9, size).astype(np.float32))
        found = found.updated(*(torch.from_numpy(one[-1]) for one in (rows, labels, counts)))
    values, which, weights = (np.concatenate(one) for one in (rows, labels, counts))
    for label in (0, 1):
        own = which == label
        mean = np.average(values[own], axis=0, weights=weights[own])
        variance = np.average((values[own] - mean) ** 2, axis=0, weights=weights[own])
        assert found.weights[label] == weights[own].sum()
        np.testing.assert_allclose(found.means[label], mean, rtol=1e-5)
        np.testing.assert_allclose(found.variances[label], variance, rtol=1e-4)
    assert found.weights[2] == 0 and nothing.eq(0).all()


def test_rows_are_drawn_from_the_moments_of_their_class():
    means, variances = torch.tensor([[1.0, -4.0], [9.0, 0.0]]), torch.tensor([[4.0, 0.0], [1, 9]])
    moments = ClassStatistics(torch.ones(2), means, variances)
    rows, labels = moments.drawn(torch.tensor([20_000, 10_000]), generator(0, "trial"))
    assert torch.bincount(labels).tolist() == [20_000, 10_000]
    for label in (0, 1):
        own = rows[labels == label]
        torch.testing.assert_close(own.mean(0), means[label], atol=0.1, rtol=0)
        torch.testing.assert_close(own.var(0), variances[label], atol=0.2, rtol=0)


# What is learnt.


def test_alike_clients_without_both_parts_are_minibatch_but_for_rounding(simulate):
    """Minibatch adds up gradients of clients, gas differentiates the buffer as a whole."""
    alike = {
        "clients": 4, "partition": "size(partition_sizes=[350, 350, 350, 350])",
        "batch_size": 70, "local_steps": 3,
    }  # fmt: skip
    found = simulate(strategy=PLAIN, **alike)
    whole = simulate(strategy="minibatch", system="wifi()", **alike)
    for name, weight in whole.model.items():
        torch.testing.assert_close(found.model[name], weight, atol=1e-6, rtol=1e-4)
    assert found.rounds["payload_bytes_up"].equals(whole.rounds["payload_bytes_up"])
    both = found.rounds["server_flops"] / whole.rounds["server_flops"]
    assert (both == 2).all()  # for the clients, and for itself


def test_heads_follow_adjusted_logits_and_the_tail_plain_ones(simulate):
    """Written out for one step: CE(f(x) + log p_k, y) for heads, the mean over all for the tail."""
    rates = {"head_optimizer": "sgd(lr=0.5)", "tail_optimizer": "sgd(lr=0.3)"}
    changes = {**RUN, **rates, "strategy": "gas(generate=False)", "rounds": 1, "local_steps": 1}
    outcome = simulate(**{**changes, "partition": "dirichlet(alpha=0.1)"})
    setup = prepare(Experiment.from_dict(outcome.summary["experiment"]))
    model, batches, offsets = setup.model, {}, {}
    for client, rows in enumerate(setup.train.partitions):
        order = torch.randperm(len(rows), generator=generator(0, "batches", 1, client, 0))
        batches[client] = setup.train.batch(rows[order.numpy()][:16])
        counts = np.bincount(setup.train.labels[rows], minlength=10)
        offsets[client] = torch.from_numpy(np.log(counts / counts.sum() + 1e-12)).float()

    assert min(map(min, offsets.values())) < -27  # a class that a client does not hold

    def gradients(pixels, labels, offset=0.0):
        model.zero_grad()
        functional.cross_entropy(model(pixels).logits + offset, labels).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    joint = gradients(*(torch.cat(parts) for parts in zip(*batches.values(), strict=True)))
    heads = [gradients(*batch, offsets[client]) for client, batch in batches.items()]
    for name, before in model.state_dict().items():
        is_head = "embeddings" in name or "layers.0." in name
        mean = sum(head[name] for head in heads) / 4  # all count alike
        step = 0.5 * mean if is_head else 0.3 * joint[name]
        torch.testing.assert_close(outcome.model[name], before - step, atol=1e-6, rtol=1e-4)


def test_every_class_is_filled_up_to_a_batch_and_the_server_pays_for_it(simulate):
    """One client: a buffer is a batch; operations are those of its rows twice, and of the drawn."""
    changes = {**RUN, "clients": 1, "partition": "iid()", "rounds": 1, "batch_size": 64}
    filled, plain = simulate(**changes), simulate(**{**changes, "strategy": PLAIN})
    setup = prepare(Experiment.from_dict(filled.summary["experiment"]))
    rows = setup.train.partitions[0]
    order = torch.randperm(len(rows), generator=generator(0, "batches", 1, 0, 0)).numpy()
    drawn = 0
    for step in range(4):
        labels = setup.train.labels[rows[order[64 * step : 64 * (step + 1)]]]
        counts = np.bincount(labels, minlength=10)
        assert counts.all() and counts.max() < 64
        drawn += (64 - counts).sum()
    each = setup.tail.row_flops(setup.head.smashed_shape[0])[1]
    assert plain.summary["server_flops"] == 2 * 4 * 64 * each
    assert filled.summary["server_flops"] - plain.summary["server_flops"] == drawn * each
    assert not filled.equals(plain)


def test_moments_go_on_from_round_to_round(simulate):
    """One client, 4 batches of 64 rows a round: they count by 1, 2, ... 8."""
    kept = []
    changes = {**RUN, "clients": 1, "partition": "iid()", "batch_size": 64}
    simulate(watch=lambda row, result: kept.append(result.weights["class-weights"]), **changes)
    assert [one.numpy().sum() for one in kept] == [64 * 10, 64 * 36]


# Time.


def test_payloads_are_served_as_they_arrive_in_virtual_time(simulate):
    """By the clock of the whole graph: the buffer of each step has the next four that arrive."""
    results = []
    outcome = simulate(watch=lambda row, result: results.append(result), **RUN)
    run = Timed.of(outcome.summary["experiment"])
    tasks = results[0].tasks
    _, now = parse_system(UNEQUAL).in_round(run, 1, 0.0)
    times = time_round(Graph.of(tasks), now)
    assert times.seconds == pytest.approx(outcome.rounds["virtual_seconds"][0])
    ups = [number for number, task in enumerate(tasks) if task.kind == "up"]
    came = sorted(ups, key=lambda number: (times.end[number], tasks[number].client))
    steps = [task for task in tasks if task.kind == "step"]
    assert len(came) == 16 and len(steps) == 4
    buffers = []
    for step in steps:
        serves = [number for number in step.after if tasks[number].kind == "serve"]
        buffers.append({up for serve in serves for up in tasks[serve].after if up in ups})
    assert buffers == [set(came[start : start + 4]) for start in range(0, 16, 4)]
    first = [tasks[up].client for up in buffers[0]]
    assert len(set(first)) < 4  # somebody is there twice


def test_engines_states_and_a_stop_change_nothing(
    simulate, reference, through_state, on_ray, resume, tmp_path
):
    def stop(row, result):
        if row["round"] == 1:
            raise KeyboardInterrupt

    whole = reference(**RUN)
    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, checkpoint_every=1, **RUN)
    half = type(whole)(tmp_path / "run1")
    resume(half)
    for found in (half, through_state(**RUN), on_ray(**RUN)):
        assert found.equals(whole)
        assert found.rounds["virtual_seconds"].equals(whole.rounds["virtual_seconds"])
    without = reference(**{**RUN, "strategy": "gas(generate=False)"})
    assert not without.equals(whole)


# What does not go with it.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system": "none()"}, "needs virtual time; give a system"),
        ({"end": 2}, "gas"),
        ({"tokens": "residual_gate()"}, "gas keeps moments value by value"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    keys = {**RUN, "cut": 1, "model": "vit(num_hidden_layers=3, patch_size=4)", **changes}
    with pytest.raises(ValueError, match=message):
        prepare(Experiment.from_dict(keys))
