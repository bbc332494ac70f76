"""What must be equal between strategies, and who is dropped; test_checks.py has the common laws."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch.nn import functional

from fl_split.exchange.records import BEGIN, GO_ON, GRADIENT, HEAD, HELD, PAYLOAD, SAMPLES, Weights
from fl_split.payload import Payload
from fl_split.specs import parse
from simulations.clients import client_app
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies import STRATEGIES, NoClientsLeft
from strategies.server import flower_messages
from strategies.server.loop import train_loss

PRIVATE = "parallel(average_heads=False)"
BUILT = {spec: parse(spec, STRATEGIES) for spec in [*STRATEGIES, PRIVATE]}
OF_CLIENTS = [spec for spec, built in BUILT.items() if not built.trains_on_server]
SPLIT = [spec for spec in OF_CLIENTS if BUILT[spec].sends_smashed_data]
WHOLE = [spec for spec in OF_CLIENTS if not BUILT[spec].sends_smashed_data]
every_strategy = pytest.mark.parametrize("name", STRATEGIES)


def changed(reply: Message, **changes) -> Message:
    """Return a reply that says something else."""
    found = flower_messages.content(replace(flower_messages.read(reply), **changes))
    reply.content.clear()
    for name, part in found.items():
        reply.content[name] = part
    return reply


def told(reply: Message, **numbers) -> Message:
    """Return a reply with other numbers."""
    return changed(reply, numbers={**flower_messages.read(reply).numbers, **numbers})


def partition(context) -> int:
    return int(context.node_config["partition-id"])


def fail(reply):
    raise RuntimeError("battery is empty")


def not_finite(reply):
    """Put a NaN into the payload's values or the weights."""
    record = flower_messages.read(reply)
    if record.action == PAYLOAD:
        payload = Payload.from_bytes(record.sent())
        payload.carried["tokens"][0, 0, 0] = torch.nan
        return changed(reply, payload=payload.to_bytes())
    spoilt = {name: Weights.of(found.numpy() * np.nan) for name, found in record.weights.items()}
    return changed(reply, weights=spoilt)


def no_class(reply):
    """Send labels that are no class."""
    record = flower_messages.read(reply)
    if record.action != PAYLOAD:
        return reply
    payload = Payload.from_bytes(record.sent())
    payload.side["labels"][0] = 77
    return changed(reply, payload=payload.to_bytes())


FREE = {"fedprox": "fedprox(mu=0.0)", "feddyn": "feddyn(alpha=0.0)"}
"""Strategies that pull one client too, told not to."""

OFTEN = {"cse_fsl": "cse_fsl(h=1)", "fsl_sage": "fsl_sage(h=1)"}
"""Strategies that send few batches, told to send all."""


@pytest.mark.parametrize("name", [k for k, kind in STRATEGIES.items() if kind.trains_end_to_end])
def test_one_client_one_round_equals_every_other_strategy(simulate, reference, name):
    one = {"clients": 1, "rounds": 1, "partition": "iid", "batch_size": 512}
    name = FREE.get(name, name)
    assert simulate(strategy=name, **one).equals(reference(strategy="centralised", **one))


@pytest.mark.parametrize("name", [k for k in OF_CLIENTS if not BUILT[k].keeps_models or k in SPLIT])
def test_clients_that_send_nonsense_are_dropped_and_training_goes_on(simulate, spoilt, name):
    """At once or after a message; whole models have one message a round, without labels."""
    ways = {1: (not_finite, 0), 2: (not_finite, 1), 3: (no_class, 0), 4: (no_class, 1)}
    if name in WHOLE:
        ways = {1: (not_finite, 0)}
    spoiling = spoilt.several([spoilt({client}, *way) for client, way in ways.items()])
    outcome = simulate(spoiling, strategy=OFTEN.get(name, name), batch_size=128)
    dropped = outcome.clients.query("dropped != ''")
    twice = [1] if name == "ampere" else [*ways]  # whose first round is one message, of weights
    assert sorted(dropped["client"]) == sorted([*ways, *twice])
    for client, reason in zip(dropped["client"], dropped["dropped"], strict=True):
        assert {not_finite: "finite", no_class: "labels"}[ways[client][0]] in reason
    assert all(value.isfinite().all() for value in outcome.model.values())
    assert outcome.summary["status"] == "complete"


@pytest.mark.parametrize("name", OF_CLIENTS)
def test_when_no_client_is_left_the_run_ends_with_what_it_has(simulate, spoilt, name, tmp_path):
    with pytest.raises(NoClientsLeft, match="battery is empty"):
        simulate(spoilt(set(range(6)), fail, 0), strategy=name)
    summary = json.loads((tmp_path / "run1" / "summary.json").read_text())
    assert (summary["status"], summary["ended_by"]) == ("failed", "no clients left")


@pytest.mark.parametrize("optimizer", ["sgd(lr=0.05, momentum=0.9)", "adam(lr=0.01)"])
@pytest.mark.parametrize("cut", [1, 2])
def test_sflv1_equals_fedavg_exactly(simulate, optimizer, cut):
    same_way = {"head_optimizer": optimizer, "tail_optimizer": optimizer, "cut": cut, "rounds": 3}
    first = simulate(strategy="sflv1", **same_way)
    second = simulate(strategy="fedavg", **same_way)
    assert first.equals(second)
    assert first.rounds["accuracy"].tolist() == second.rounds["accuracy"].tolist()


def test_sflv1_does_not_depend_on_the_cut(simulate):
    assert simulate(strategy="sflv1", cut=1).equals(simulate(strategy="sflv1", cut=2))


def test_parallel_takes_one_tail_step_with_client_weights(simulate):
    """Two clients, one exchange, SGD: compare with the formulas, written out."""
    from fl_split.seeds import generator

    values = {
        "clients": 2,
        "rounds": 1,
        "local_steps": 0,
        "batch_size": 2000,
        "partition": "dirichlet(alpha=0.5)",
        "head_optimizer": "sgd(lr=0.5)",
        "tail_optimizer": "sgd(lr=0.3)",
        "cut": 1,
        "model": "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)",
    }
    outcome = simulate(**values)
    setup = prepare(Experiment.from_dict(values))
    counts = [len(rows) for rows in setup.train.partitions]
    shares = [count / sum(counts) for count in counts]
    model, expected = setup.model, {}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for client, rows in enumerate(setup.train.partitions):
        order = torch.randperm(len(rows), generator=generator(0, "batches", 1, client, 0))
        pixels, labels = setup.train.batch(rows[order.numpy()])
        model.zero_grad()
        functional.cross_entropy(model(pixels).logits, labels).backward()
        for name, parameter in model.named_parameters():
            is_head = "embeddings" in name or "layers.0." in name
            step = (0.5 if is_head else 0.3) * shares[client] * parameter.grad
            expected[name] = expected.get(name, before[name]) - step
    for name, value in outcome.model.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
        assert not torch.equal(value, before[name])


def test_sflv2_depends_on_order_and_phi(simulate):
    values = {"local_steps": 0, "batch_size": 128, "rounds": 1}
    results = [
        simulate(strategy=f"sflv2(order={order!r}, phi={phi})", **values)
        for order, phi in [("cyclic", 0), ("reverse", 0), ("cyclic", 1), ("cyclic", 2)]
    ]
    for i, first in enumerate(results):
        for second in results[i + 1 :]:
            assert not first.equals(second)
    again = simulate(strategy="sflv2(order='cyclic', phi=99)", **values)
    assert results[0].equals(again)


def served(simulate, strategy) -> Iterator[int]:
    """Order in which clients' gradients arrive, as the client app sees it."""
    seen = []

    def watch(message: Message, context):
        if flower_messages.read(message).action == GRADIENT:
            seen.append(partition(context))
        return client_app.app(message, context)

    simulate(watch, strategy=strategy, partition="iid", clients=3, local_steps=2, rounds=1)
    return seen


@pytest.mark.parametrize(
    ("strategy", "order"),
    [
        ("sflv2(order='cyclic', phi=0)", [0, 0, 1, 1, 2, 2]),
        ("sflv2(order='reverse', phi=0)", [2, 2, 1, 1, 0, 0]),
        ("sflv2(order='cyclic', phi=1)", [0, 1, 2, 0, 1, 2]),
        ("sequential(order='cyclic')", [0, 0, 1, 1, 2, 2]),
    ],
)
def test_clients_are_served_in_the_order_that_is_named(simulate, strategy, order):
    assert served(simulate, strategy) == order


def test_sequential_hands_the_head_over(simulate):
    heads = {}

    def watch(message: Message, context):
        client, sent = partition(context), flower_messages.read(message).weights
        reply = client_app.app(message, context)
        returned = flower_messages.read(reply).weights
        for way, weights in (("in", sent), ("out", returned)):
            if HEAD in weights:
                heads[client, way] = weights[HEAD].numpy()
        return reply

    outcome = simulate(watch, strategy="sequential(order='cyclic')", clients=3, rounds=1)
    assert (heads[1, "in"] == heads[0, "out"]).all()
    assert (heads[2, "in"] == heads[1, "out"]).all()
    assert not (heads[1, "out"] == heads[0, "out"]).all()
    cls = outcome.model["vit.embeddings.cls_token"].flatten().numpy()
    assert (heads[2, "out"][: len(cls)] == cls).all()


def test_private_heads_never_travel_and_never_mix(simulate):
    outcome = simulate(strategy="parallel(average_heads=False)", rounds=3)
    assert outcome.rounds["head_bytes_up"].sum() == 0
    assert outcome.rounds["head_bytes_down"].sum() == 0
    assert not outcome.equals(simulate(strategy="parallel", rounds=3))


def test_private_heads_are_saved_as_their_average(simulate):
    heads = {}

    def watch(message: Message, context):
        reply = client_app.app(message, context)
        if flower_messages.read(message).action == flower_messages.OWN_HEAD:
            heads[partition(context)] = flower_messages.read(reply).weights[HEAD].numpy()
        return reply

    outcome = simulate(watch, strategy=PRIVATE, local_steps=0)
    sizes = outcome.clients.query("round == 1").set_index("client")["samples"]
    mean = sum(head * (sizes[client] / sizes.sum()) for client, head in heads.items())
    cls = outcome.model["vit.embeddings.cls_token"].flatten().numpy()
    np.testing.assert_allclose(cls, mean[: len(cls)], rtol=1e-5)
    assert not np.allclose(cls, heads[5][: len(cls)], rtol=1e-3)


def test_a_private_head_that_cannot_be_used_is_left_out_and_reported(simulate):
    def spoilt(message: Message, context):
        reply = client_app.app(message, context)
        is_shown = flower_messages.read(message).action == flower_messages.OWN_HEAD
        return not_finite(reply) if is_shown and partition(context) == 3 else reply

    outcome = simulate(spoilt, strategy=PRIVATE)
    assert np.isfinite(outcome.rounds["loss"]).all()
    assert outcome.clients.query("dropped != ''")["client"].tolist() == [3, 3]


def test_a_private_head_survives_a_failure_inside_the_handler(simulate):
    """The failed message changes nothing: the client goes on from what it had."""
    seen = {}

    def breaks(message: Message, context):
        action, number = flower_messages.read(message).action, message.metadata.group_id
        if partition(context) == 2 and action in (BEGIN, GO_ON):
            head = context.state.array_records.get("head")
            seen[number] = None if head is None else head["head"].numpy()
        if (partition(context), action, number) == (2, GRADIENT, "2"):
            # In the middle of the handler, when the client has been restored.
            changed(message, payload=b"not a gradient")
        return client_app.app(message, context)

    outcome = simulate(breaks, strategy=PRIVATE, rounds=3)
    dropped = outcome.clients.query("dropped != ''")
    assert dropped["round"].tolist() == [2]
    assert "not a payload" in dropped["dropped"].iloc[0]
    assert (seen["2"] == seen["3"]).all()


def test_a_gradient_without_a_round_is_refused(simulate):
    """As after a worker lost its clients: no other client's state may answer."""
    first = True

    def forgetful(message: Message, context):
        nonlocal first
        if flower_messages.read(message).action == GRADIENT and partition(context) == 1:
            if first:
                context.client = None
            first = False
        return client_app.app(message, context)

    dropped = simulate(forgetful).clients.query("dropped != ''")
    assert dropped["client"].tolist() == [1]
    assert "no round in progress" in dropped["dropped"].iloc[0]


@pytest.mark.parametrize("name", ["parallel", "sflv1", "fedavg"])
def test_malformed_replies_cost_the_round_of_their_senders_alone(simulate, spoilt, name):
    def malformed(how, reply):
        weights = flower_messages.read(reply).weights
        if not weights:
            return reply
        if how == "missing":
            return changed(reply, weights={})
        if how == "short":
            short = Weights.of(weights[HEAD].numpy()[:-1])
            return changed(reply, weights={**weights, HEAD: short})
        return told(reply, **({SAMPLES: float("nan")} if how == "metric" else {HELD: 10**9}))

    ways = enumerate(["missing", "short", "metric", "weight"], start=2)
    spoiling = spoilt.several([spoilt({k}, partial(malformed, how), 0) for k, how in ways])
    outcome = simulate(spoiling, strategy=name)
    assert outcome.clients.query("dropped != ''")["client"].tolist() == [2, 3, 4, 5] * 2
    assert outcome.summary["status"] == "complete"


@pytest.mark.parametrize("name", SPLIT)
def test_batches_of_sizes_that_cannot_be_cost_their_senders_the_round(simulate, spoilt, name):
    def lie(size, reply):
        is_payload = flower_messages.read(reply).action == PAYLOAD
        return told(reply, **{SAMPLES: size}) if is_payload else reply

    sizes = enumerate([0, -3, 10**9, float("nan")])
    spoiling = spoilt.several([spoilt({k}, partial(lie, size), 0) for k, size in sizes])
    outcome = simulate(spoiling, strategy=name, rounds=1, local_steps=2)
    assert outcome.clients.query("dropped != ''")["client"].tolist() == [0, 1, 2, 3]
    assert outcome.summary["status"] == "complete"
    assert all(value.isfinite().all() for value in outcome.model.values())


def test_local_epochs_pass_over_the_samples_that_often_in_new_order(simulate):
    rows = []

    def watch(message: Message, context):
        reply = client_app.app(message, context)
        record = flower_messages.read(reply)
        if record.action == PAYLOAD:
            payload = Payload.from_bytes(record.sent())
            rows.append(payload.carried["tokens"].shape[0])
            rows.append(payload.side["labels"].tolist())
        return reply

    outcome = simulate(
        watch, clients=1, partition="iid", local_steps=0, local_epochs=2, batch_size=1000, rounds=1,
        head_optimizer="sgd(lr=0.0)",
    )  # fmt: skip
    assert outcome.clients["samples"].tolist() == [2 * 1433]
    assert rows[0::2] == [1000, 433, 1000, 433]
    first, second = rows[1] + rows[3], rows[5] + rows[7]
    assert sorted(first) == sorted(second) and first != second


def test_clients_without_samples_take_part_in_no_round(simulate):
    outcome = simulate(partition="dirichlet(alpha=0.01)", clients=60, rounds=1)
    values = outcome.summary["experiment"]
    sizes = [len(rows) for rows in prepare(Experiment.from_dict(values)).train.partitions]
    assert 0 in sizes
    assert outcome.clients["client"].tolist() == [c for c, size in enumerate(sizes) if size]


def test_fraction_samples_anew_each_round(simulate):
    outcome = simulate(clients=20, fraction=0.25, rounds=4)
    rounds = [set(part["client"]) for _, part in outcome.clients.groupby("round")]
    assert [len(chosen) for chosen in rounds] == [5, 5, 5, 5]
    assert len(set.union(*rounds)) > 5


def test_local_steps_repeat_small_clients_and_cut_large_ones(simulate):
    outcome = simulate(partition="linear", local_steps=3, batch_size=100, rounds=1)
    assert (outcome.clients["steps"] == 3).all()
    assert outcome.clients["samples"].max() == 300


# The training loss that a round reports.

LENET = {"model": "lenet(image_size=16)", "cut": "conv1"}


def test_train_loss_by_hand():
    """Client 4 holds 30 samples, its losses 1, 2 and 6; client 7 holds 10, its loss 7."""
    losses = {7: {0: 7.0}, 4: {2: 6.0, 0: 1.0, 1: 2.0}}
    assert train_loss(losses, {4: 30, 7: 10, 9: 50}) == (30 * 3 + 10 * 7) / 40
    assert train_loss({-1: {0: 0.1}}, {4: 30, 7: 10}) == 0.1  # the server's
    assert np.isnan(train_loss({}, {4: 30}))


@pytest.mark.parametrize("name", [*sorted({*SPLIT} - {"ampere"}), "mergesfl(slowest=0.25)", *WHOLE])
def test_train_loss_weights_clients_by_the_samples_they_hold_in_every_strategy(simulate, name):
    """Nothing learns, so every loss can be had from the first model; clients differ in steps."""
    seen = []

    def watch(message: Message, context):
        reply = client_app.app(message, context)
        record = flower_messages.read(reply)
        if record.action == PAYLOAD:
            seen.append((partition(context), Payload.from_bytes(record.sent())))
        return reply

    values = {"partition": "linear", "rounds": 1, "batch_size": 60, "seed": 3,
              "head_optimizer": "sgd(lr=0.0)", "tail_optimizer": "sgd(lr=0.0)"}  # fmt: skip
    # Whole models see the batches of sflv1, whose payloads show them.
    shown = simulate(watch, strategy="sflv1" if name in WHOLE else name, **values)
    setup = prepare(Experiment.from_dict(shown.summary["experiment"]))
    held = {client: len(rows) for client, rows in enumerate(setup.train.partitions)}
    losses = {}
    for client, payload in seen:
        with torch.no_grad():
            logits = setup.tail(payload.carried["tokens"])
        loss = functional.cross_entropy(logits, payload.side["labels"].long())
        losses.setdefault(client, []).append(loss.item())
    means = {client: np.mean(found) for client, found in losses.items()}
    weights = [held[client] for client in means]
    expected = np.average([*means.values()], weights=weights)
    by_steps = [held[client] * len(losses[client]) for client in means]
    if len({len(found) for found in losses.values()}) > 2:  # batches as large as shares are alike
        assert abs(expected - np.average([*means.values()], weights=by_steps)) > 1e-4
    outcome = simulate(strategy=name, **values)
    assert outcome.rounds["train_loss"][0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("model", [{}, LENET], ids=["vit", "lenet"])
def test_sflv1_reports_the_train_loss_of_fedavg_to_the_last_bit(simulate, model):
    """Batches of 50 divide no client's samples evenly, and clients take unlike numbers of steps."""
    values = {**model, "partition": "dirichlet(alpha=0.3)", "batch_size": 50, "local_steps": 0}
    first, second = (simulate(strategy=name, **values) for name in ("sflv1", "fedavg"))
    assert first.clients["steps"].nunique() > 1
    assert first.rounds["train_loss"].tolist() == second.rounds["train_loss"].tolist()


def test_a_client_dropped_on_the_way_has_no_part_in_the_train_loss(simulate, spoilt):
    """As FedAvg, which never hears of its steps."""
    values = {"batch_size": 64, "rounds": 1}
    first = simulate(spoilt({2}, fail, 2), strategy="sflv1", **values)
    assert first.clients.query("dropped != ''")["steps"].tolist() == [2]
    second = simulate(spoilt({2}, fail, 0), strategy="fedavg", **values)
    assert first.rounds["train_loss"].tolist() == second.rounds["train_loss"].tolist()
