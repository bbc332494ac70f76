"""CycleSL: the tail learns from pooled rows, then answers with the cut gradients that it has."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from fl_split.codecs import Received, Smashed, parse_codec
from fl_split.exchange.link import Arrival, Link
from fl_split.exchange.records import PAYLOAD
from fl_split.exchange.serving import of_rows, pooled
from fl_split.exchange.split import Split, encode
from fl_split.flat import Flat
from fl_split.models.vit import ViT, split
from fl_split.payload import Payload
from fl_split.seeds import StepId, generator
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies.checks import check_tasks
from strategies.server import flower_messages
from strategies.server.tail import TrainedTail

SGD = {"head_optimizer": "sgd(lr=0.5)", "tail_optimizer": "sgd(lr=0.3)"}
SPEC = ViT(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)
WEIGHTS = {3: 5, 4: 1, 8: 2}
"""Samples that three clients hold."""


def arrivals(codec):
    """Return a tail, and what three clients of batches of unlike sizes have sent it."""
    codec, classes = parse_codec(codec), 4
    model = SPEC.build(image_size=8, channels=1, num_classes=classes, seed=0)
    _, tail = split(model.train(), 1)
    link, found = Link(codec, parse_codec("identity")), {}
    for client, size in zip(WEIGHTS, (6, 3, 8), strict=True):
        draw, at = torch.Generator().manual_seed(client), StepId(0, 1, client, 0)
        tokens = torch.randn(size, 5, 16, generator=draw)
        attention = torch.rand(size, 5, generator=draw).softmax(dim=1)
        labels = torch.randint(classes, (size,), generator=draw)
        smashed = Smashed(tokens, lambda a=attention: a, labels, classes)
        found[client] = link.carry(encode(codec, smashed, at), at, tail)
    return Flat(tail), found


@pytest.mark.parametrize(
    "codec", ["identity", "adc(ratio=0.4, weighted_loss=True)", "c3sl(factor=3)"]
)
def test_the_loss_of_the_whole_pool_is_that_of_parallel(codec):
    """One mini-batch of all rows: gradient of sum_k n_k / n loss_k, also where rows are merged."""
    tail, came = arrivals(codec)
    at, shares = StepId(0, 1, 3, 0), [count / 8 for count in WEIGHTS.values()]
    losses, _, wanted = Split().cut_gradients(tail, [*came.values()], shares, at)
    pool = pooled({k: one.received for k, one in came.items()}, WEIGHTS, 4)
    assert len(pool.tokens) == sum(one.rows for one in came.values())
    shuffled = of_rows(pool, torch.randperm(len(pool.tokens), generator=generator(0, "trial")))
    (loss,), (nothing,), found = Split().cut_gradients(tail, [Arrival({}, shuffled)], [1.0], at)
    assert not nothing.carried
    assert loss == pytest.approx(np.dot(losses, shares), rel=1e-5)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_rows_of_a_part_count_by_their_clients_samples_over_its_rows():
    """Rows 0, 2 of client 1 (of three, holding 6), row 3 of client 5 (of one, holding 9)."""
    tokens = torch.arange(4.0)[:, None, None].expand(4, 2, 3)
    first = Received(tokens[:3], torch.tensor([0, 1, 0]))
    second = Received(tokens[3:], torch.tensor([[0.5, 0.5]]))
    part = of_rows(pooled({1: first, 5: second}, {1: 6, 5: 9}, 2), torch.tensor([3, 0, 2]))
    assert part.tokens[:, 0, 0].tolist() == [3, 0, 2] and part.counts is None
    assert part.targets.tolist() == [[0.5, 0.5], [1, 0], [1, 0]]
    assert part.weights.tolist() == [9, 2, 2]


def test_rows_of_unlike_lengths_keep_their_numbers_of_tokens():
    """By sample, and by client; a part has no more padding than it needs."""
    tail, _ = arrivals("identity")
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 5, 16, generator=draw)
    tokens[1, 2:] = tokens[2, 4:] = 0
    ragged = Received(tokens, torch.tensor([0, 1, 2]), counts=torch.tensor([5, 2, 4]))
    other = Received(torch.randn(2, 3, 16, generator=draw), torch.tensor([3, 0]))
    pool = pooled({0: ragged, 1: other}, {0: 3, 1: 2}, 4)
    part = of_rows(pool, torch.tensor([4, 1]))
    assert part.counts.tolist() == [3, 2] and part.tokens.shape == (2, 3, 16)
    (loss,), _, _ = Split().cut_gradients(tail, [Arrival({}, part)], [1.0], StepId(0, 1, 0, 0))
    with torch.no_grad():
        logits = torch.cat([tail.module(other.tokens[1:]), tail.module(tokens[1:2, :2])])
    assert loss == pytest.approx(float(functional.cross_entropy(logits, torch.tensor([0, 1]))))


@pytest.mark.parametrize(("epochs", "size"), [(2, 32), (1, 80)])
def test_an_exchange_by_the_formulas(simulate, epochs, size):
    """Two clients, SGD, plain autograd: steps on shuffled parts of the pool, then the heads'."""
    values = {"clients": 2, "rounds": 1, "local_steps": 1, "batch_size": 40, "cut": 1, **SGD}
    values["partition"] = "size(partition_sizes=[900, 500])"
    outcome = simulate(strategy=f"cyclesl(epochs={epochs}, batch={size})", **values)
    setup = prepare(Experiment.from_dict(outcome.summary["experiment"]))
    model, batches, features = setup.model, [], []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for client, rows in enumerate(setup.train.partitions):
        order = torch.randperm(len(rows), generator=generator(0, "batches", 1, client, 0))
        batches.append(setup.train.batch(rows[order.numpy()][:40]))
        with torch.no_grad():
            features.append(setup.head(batches[-1][0])[0])
    pool, labels = torch.cat(features), torch.cat([labels for _, labels in batches])
    weights = torch.tensor([900.0] * 40 + [500.0] * 40)
    of_tail = [*setup.tail.parameters()]
    draw = generator(0, "pool", 1, 0)
    for _ in range(epochs):
        for rows in torch.randperm(80, generator=draw).split(size):
            losses = functional.cross_entropy(
                setup.tail(pool[rows]), labels[rows], reduction="none"
            )
            loss = (losses * weights[rows]).sum() / weights[rows].sum()
            with torch.no_grad():
                for p, gradient in zip(of_tail, torch.autograd.grad(loss, of_tail), strict=True):
                    p -= 0.3 * gradient
    tail_now = {name: value.clone() for name, value in model.state_dict().items()}
    found = dict.fromkeys(before, 0.0)
    for (pixels, targets), share in zip(batches, (9 / 14, 5 / 14), strict=True):
        model.zero_grad()
        functional.cross_entropy(model(pixels).logits, targets).backward()
        for name, p in model.named_parameters():
            found[name] = found[name] + 0.5 * share * p.grad
    moved = {True: 0.0, False: 0.0}
    for name, value in outcome.model.items():
        is_head = "embeddings" in name or "layers.0." in name
        wanted = before[name] - found[name] if is_head else tail_now[name]
        torch.testing.assert_close(value, wanted, atol=3e-7, rtol=1e-4)
        moved[is_head] = max(moved[is_head], float((wanted - before[name]).abs().max()))
    assert min(moved.values()) > 1e-3  # else nothing is compared


def test_the_server_computes_epochs_and_one_pass_and_nothing_else_crosses(simulate, reference):
    values = {"local_steps": 2, "codec": "attended(ratio=0.5)"}
    results = []
    plain = reference(strategy="parallel", **values)
    cycle = simulate(
        watch=lambda row, result: results.append(result), strategy="cyclesl(epochs=3)", **values
    )
    assert (cycle.rounds["server_flops"] == 4 * plain.rounds["server_flops"]).all()
    for column in ("client_flops", "payload_bytes_up", "payload_bytes_down", "head_bytes_up"):
        assert cycle.rounds[column].tolist() == plain.rounds[column].tolist()
    for result in results:
        check_tasks(result)
        tasks = result.tasks
        first, second = (number for number, task in enumerate(tasks) if task.kind == "step")
        work = tasks[first].amount + tasks[second].amount
        assert 4 * work == 3 * cycle.rounds["server_flops"][result.round - 1]
        ups = {n for n, task in enumerate(tasks) if task.kind == "up" and task.step == 0}
        decoded = {n for n, t in enumerate(tasks) if t.kind == "decode" and {*t.after} & ups}
        assert {*tasks[first].after} == decoded and len(decoded) == 6
        served = [task for task in tasks if task.kind == "serve"]
        assert all({first, second} & {*task.after} for task in served)


def test_private_heads_stay_with_clients(simulate):
    outcome = simulate(strategy="cyclesl(average_heads=False)", rounds=1, local_steps=1)
    assert outcome.rounds["head_bytes_up"].sum() == outcome.rounds["head_bytes_down"].sum() == 0


def test_a_u_shape_is_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"^strategy: cyclesl.* needs labels on the server"
    ) as found:
        prepare(Experiment.from_dict({"strategy": "cyclesl", "end": 3}))
    assert "\n" not in str(found.value)


def test_who_spoils_the_pool_is_dropped_and_the_others_go_on(simulate, spoilt):
    """Numbers that are finite, with a loss that is not."""

    def huge(reply):
        record = flower_messages.read(reply)
        if record.action == PAYLOAD:
            payload = Payload.from_bytes(record.sent())
            payload.carried["tokens"].mul_(1e38)
            content = flower_messages.content(
                type(record)(PAYLOAD, payload.to_bytes(), {}, record.numbers, record.step)
            )
            reply.content.clear()
            for name, part in content.items():
                reply.content[name] = part
        return reply

    outcome = simulate(spoilt({2}, huge, 1), strategy="cyclesl(batch=8)", rounds=1, local_steps=3)
    dropped = outcome.clients.query("dropped != ''")
    assert dropped["client"].tolist() == [2] and "not finite" in dropped["dropped"].iloc[0]
    assert all(bool(value.isfinite().all()) for value in outcome.model.values())
    assert (outcome.clients.query("client != 2")["steps"] == 3).all()


def test_batch_norms_see_the_pooled_rows(simulate):
    """The first norm of a tail: each of two passes over the pool moves its running mean by 0.1."""
    values = {"model": "resnet18(width=4, small_images=True)", "cut": "stem", "clients": 2}
    values |= {"rounds": 1, "local_steps": 1, "batch_size": 8, "partition": "iid"}
    frozen = {"head_optimizer": "sgd(lr=0.0)", "tail_optimizer": "sgd(lr=0.0)"}
    outcome = simulate(strategy="cyclesl(epochs=2, batch=16)", **values, **frozen)
    setup = prepare(Experiment.from_dict(outcome.summary["experiment"]))
    tokens = []
    for client, rows in enumerate(setup.train.partitions):
        order = torch.randperm(len(rows), generator=generator(0, "batches", 1, client, 0))
        with torch.no_grad():
            tokens.append(setup.head(setup.train.batch(rows[order.numpy()][:8])[0])[0])
    seen = []
    first = setup.tail.stages[0].layer[0].convolution
    first.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    setup.tail(torch.cat(tokens))
    mean = seen[0].mean(dim=(0, 2, 3))
    name = "resnet.encoder.stages.0.layers.0.layer.0.normalization.running_mean"
    torch.testing.assert_close(outcome.model[name], (1 - 0.9**2) * mean)


def test_steps_on_the_pool_divide_a_round_among_them(simulate, monkeypatch):
    """As schedules count: each begins where the one before ended, the last ends with the round."""
    moments, step = [], TrainedTail.step

    def watched(tail, arrivals, at, graphs, moment):
        moments.append(moment)
        return step(tail, arrivals, at, graphs, moment)

    monkeypatch.setattr(TrainedTail, "step", watched)
    simulate(strategy="cyclesl(epochs=2, batch=100)", rounds=1, local_steps=2)
    places = [moment.place("step") for moment in moments]
    assert len(places) == 2 * 2 * 4  # 384 rows, in parts of 100
    assert places[0][0] == 0 and places[-1][1] == pytest.approx(1)
    for (_, end), (begin, _) in pairwise(places):
        assert begin == pytest.approx(end)
