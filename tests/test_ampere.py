"""After Ampere: heads learn alone, every sample crosses once, the tail learns from the pool."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fl_split.exchange.protocol import Batch
from fl_split.exchange.records import HEAD, TAIL, Weights
from fl_split.flat import Flat, flatten, trained
from fl_split.seeds import StepId, generator
from simulations.clients import client_app
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from simulations.runs.trials import memory_of_a_batch
from simulations.studies.cost import Estimator
from strategies import TrainingFailed
from strategies.checks import check_tasks
from strategies.server import flower_messages
from strategies.server.kept_rows import rows_of
from strategies.server.tasks import SERVER

RESNET = {
    "model": "resnet18(width=4, small_images=True)", "cut": "stem", "clients": 2,
    "local_steps": 2, "batch_size": 8, "partition": "iid",
}  # fmt: skip


def watched(simulate, *app, **changes):
    """Run; return the outcome, and what each round has told."""
    results = []
    values = {"watch": lambda row, result: results.append(result), **changes}
    return simulate(*app, **values), results


def setup_of(outcome):
    return prepare(Experiment.from_dict({**outcome.summary["experiment"], "out": ""}))


def counts(setup, client, rows):
    """Labels of a client's own images, and those of rows, by class."""
    labels, size = setup.train.labels[setup.train.partitions[client]], setup.train.num_classes
    return np.bincount(labels, minlength=size).tolist(), rows.targets.bincount(
        minlength=size
    ).tolist()


# The first part.


@pytest.mark.parametrize("changes", [{}, RESNET], ids=["vit", "resnet"])
def test_with_a_whole_copy_heads_and_auxiliaries_are_those_of_fedavg_until_the_switch(
    simulate, changes
):
    """Bit for bit, running statistics included; then heads stay."""
    values = {**changes, "head_optimizer": "sgd(lr=0.05, momentum=0.9)"}
    values["tail_optimizer"] = values["head_optimizer"]
    own, mine = watched(simulate, strategy="ampere(alone=2, auxiliary='tail')", rounds=3, **values)
    whole, theirs = watched(simulate, strategy="fedavg", rounds=2, **values)
    start = setup_of(own).initial_weights()[TAIL].numpy()
    for first, second in zip(mine, theirs, strict=False):
        size = len(second.weights[TAIL].numpy())  # what is beside a head comes before its stages
        auxiliary, head = np.split(first.weights[HEAD].numpy(), [size])
        assert (head == second.weights[HEAD].numpy()).all()
        assert (auxiliary == second.weights[TAIL].numpy()).all()
        assert (first.weights[TAIL].numpy() == start).all()
    assert (mine[2].weights[HEAD].numpy() == mine[1].weights[HEAD].numpy()).all()
    assert (mine[2].weights[TAIL].numpy() != start).any()
    for column in ("client_flops", "train_loss", "client_steps", "samples"):
        assert own.rounds[column].tolist()[:2] == whole.rounds[column].tolist()


def test_at_first_only_weights_cross_and_later_each_head_but_once(simulate):
    """The second round asks all six clients, the third nobody."""
    found, results = watched(simulate, strategy="ampere", rounds=3, local_steps=3)
    setup, rounds = setup_of(found), found.rounds
    weights = Weights.of(np.zeros(len(flatten(trained(setup.head))), np.float32))
    each, samples = len(weights.data), [len(rows) for rows in setup.train.partitions]
    assert rounds.head_bytes_down.tolist() == [6 * each, 6 * each, 0]
    assert rounds.head_bytes_up.tolist() == [6 * each, 0, 0]
    assert rounds.payload_bytes_down.tolist() == [0, 0, 0]
    assert rounds.smashed_bytes.tolist() == [0, sum(samples) * setup.head.smashed_bytes, 0]
    assert rounds.samples.tolist()[1:] == [sum(samples), 0]
    assert rounds.clients.tolist() == [6, 6, 0]
    assert rounds.payload_bytes_up[1] > rounds.smashed_bytes[1] and not rounds.payload_bytes_up[2]
    (auxiliary,) = setup.head.beside
    both = setup.head.flops(1) + auxiliary.flops(1)
    forward = setup.head.forward_flops(1)
    assert rounds.client_flops.tolist() == [both * rounds.samples[0], forward * sum(samples), 0]
    step = setup.tail.flops(1, setup.head.most_sent)
    assert rounds.server_flops.tolist() == [0, step * sum(samples), step * sum(samples)]
    assert not results[2].traffic and rounds.drift.notna().tolist() == [True, False, False]
    for result in results:
        check_tasks(result)


# What is kept.


def test_every_image_of_who_took_part_is_in_the_pool_once_and_nobody_sends_twice(simulate):
    """Whatever `local_steps` says; clients differ from round to round."""
    found, results = watched(
        simulate, strategy="ampere", rounds=4, fraction=0.5, local_steps=1, batch_size=50
    )
    setup, seen = setup_of(found), set()
    for result in results[1:]:
        assert not seen & {*result.traffic}
        seen |= {*result.traffic}
        for client in range(6):
            rows = rows_of(result.weights, client)
            assert (rows is not None) == (client in seen)
            if rows:
                held, kept = counts(setup, client, rows)
                assert held == kept and (rows.weights == 1).all()
    assert 3 < len(seen) <= 6 and results[2].traffic.keys() < seen


@pytest.mark.parametrize("codec", ["c3sl(factor=3)", "adc(ratio=0.3, weighted_loss=True)"])
def test_samples_count_alike_where_a_codec_merges_them(simulate, codec):
    found, results = watched(simulate, strategy="ampere", codec=codec, batch_size=50)
    setup = setup_of(found)
    for client, own in enumerate(setup.train.partitions):
        rows = rows_of(results[-1].weights, client)
        assert float(rows.weights.sum()) == pytest.approx(len(own))


@pytest.mark.parametrize(
    "changes",
    [RESNET, {"model": "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, "
     "patch_size=4, hidden_dropout_prob=0.5)", "clients": 2, "partition": "iid"}],
    ids=["batch norm", "dropout"],
)  # fmt: skip
def test_the_pool_is_what_the_trained_head_makes_in_evaluation(simulate, changes):
    """In the order of one shuffled pass."""
    found, results = watched(simulate, strategy="ampere", **changes)
    setup = setup_of(found)
    Flat(setup.head).load(results[0].weights[HEAD].numpy())
    setup.head.eval()
    for client, own in enumerate(setup.train.partitions):
        order = torch.randperm(len(own), generator=generator(0, "batches", 2, client, 0))
        pixels, labels = setup.train.batch(own[order.numpy()])
        rows = rows_of(results[1].weights, client)
        assert torch.equal(rows.targets, labels)
        with torch.no_grad():
            torch.testing.assert_close(rows.tokens, setup.head(pixels)[0], atol=1e-5, rtol=1e-4)


# The second part.


@pytest.mark.parametrize(("batch", "optimizer"), [(0, "sgd(lr=0.3)"), (200, "adam(lr=0.01)")])
def test_the_tail_is_that_of_plain_training_on_the_pool(simulate, batch, optimizer):
    """Two rounds of two passes: torch's own optimiser on the same rows in the same order."""
    values = {"clients": 2, "rounds": 3, "local_steps": 1, "tail_optimizer": optimizer}
    values["partition"] = "size(partition_sizes=[90, 250])"
    strategy = f"ampere(epochs=2, batch={batch})"
    found, results = watched(simulate, strategy=strategy, batch_size=64, **values)
    setup = setup_of(found)
    Flat(setup.head).load(results[0].weights[HEAD].numpy())
    images, classes = [], []
    for client, own in enumerate(setup.train.partitions):
        order = torch.randperm(len(own), generator=generator(0, "batches", 2, client, 0))
        pixels, labels = setup.train.batch(own[order.numpy()])
        images.append(pixels)
        classes.append(labels)
    with torch.no_grad():
        pool, labels = setup.head(torch.cat(images))[0], torch.cat(classes)
    of_tail = [*setup.tail.parameters()]
    kinds = {"s": lambda: torch.optim.SGD(of_tail, 0.3), "a": lambda: torch.optim.Adam(of_tail)}
    rule, losses = kinds[optimizer[0]](), {2: [], 3: []}
    for group in rule.param_groups:
        group["lr"] = 0.3 if optimizer[0] == "s" else 0.01
    for number in (2, 3):
        draw = generator(0, "pool", number)
        for _ in range(2):
            for rows in torch.randperm(340, generator=draw).split(batch or 64):
                rule.zero_grad()
                loss = functional.cross_entropy(setup.tail(pool[rows]), labels[rows])
                loss.backward()
                rule.step()
                losses[number].append(float(loss.detach()))
        wanted = flatten(trained(setup.tail)).numpy()
        mine = results[number - 1].weights[TAIL].numpy()
        np.testing.assert_allclose(mine, wanted, atol=2e-4 if batch else 2e-6, rtol=1e-3)
        assert results[number - 1].train_loss == pytest.approx(np.mean(losses[number]), rel=1e-3)
    assert np.abs(mine - results[0].weights[TAIL].numpy()).max() > 0.01


def test_a_pool_that_loses_its_way_ends_the_run_in_one_line(simulate):
    with pytest.raises(TrainingFailed, match=r"round 2: step \d+ of the tail .* smaller learning"):
        simulate(strategy="ampere", tail_optimizer="sgd(lr=1e30)")


def test_clients_send_without_waiting_and_the_tail_waits_for_all(simulate):
    values = {"local_steps": 2, "codec": "attended(ratio=0.5)", "batch_size": 100}
    _, (first, second) = watched(simulate, strategy="ampere", partition="iid", **values)
    for client in range(6):
        kinds = [task.kind for task in first.tasks if task.client == client]
        assert kinds == ["sync down", "train", "sync up"]
        own = [task for task in second.tasks if task.client == client]
        kinds = ["sync down", *["forward", "encode", "up"] * 3, "sync up"]  # of 239 images
        assert [task.kind for task in own] == kinds and own[-1].amount == 0
        assert all(second.tasks[one].client == client for task in own for one in task.after)
    (step,) = (n for n, task in enumerate(second.tasks) if task.kind == "step")
    waited, todo = set(), [step]
    while todo:
        if (number := todo.pop()) not in waited:
            waited.add(number)
            todo += second.tasks[number].after
    decoded = {n for n, task in enumerate(second.tasks) if task.kind == "decode"}
    assert len(decoded) == 18 and decoded < waited
    assert second.tasks[-1].kind == "average" and step in second.tasks[-1].after
    assert second.tasks[step].client == SERVER


# Who is lost on the way.


def test_who_fails_on_the_way_sends_anew_and_replaces_what_was_kept(simulate):
    """Client 2 fails in round 2, after its first payload."""

    def failing(message, context):
        is_second = message.metadata.group_id == "2" and context.node_config["partition-id"] == 2
        if is_second and flower_messages.read(message).action == "taken":
            raise RuntimeError("battery is empty")
        return client_app.app(message, context)

    found, results = watched(simulate, failing, strategy="ampere", rounds=4, batch_size=64)
    setup = setup_of(found)
    assert len(rows_of(results[1].weights, 2).tokens) == 64
    assert [[*result.traffic] for result in results[2:]] == [[2], []]
    for result in results[2:]:
        held, kept = counts(setup, 2, rows_of(result.weights, 2))
        assert held == kept
    step = setup.tail.flops(1, setup.head.most_sent)
    sizes = [len(rows) for rows in setup.train.partitions]
    rows = [sum(sizes) - sizes[2] + 64, sum(sizes), sum(sizes)]
    assert found.rounds.server_flops.tolist()[1:] == [step * one for one in rows]


def test_what_a_channel_loses_is_counted_and_not_sent_again(simulate):
    values = {"strategy": "ampere", "rounds": 3, "codec": "fp16 | zstd", "batch_size": 64}
    found, results = watched(simulate, **values, channel="erasure(p=0.99, packet=100, mode='drop')")
    setup = setup_of(found)
    sent = sum(-(-len(rows) // 64) for rows in setup.train.partitions)
    assert found.rounds.lost_payloads_up.tolist() == [0, sent, 0]
    start = setup.initial_weights()[TAIL].numpy()
    assert (results[2].weights[TAIL].numpy() == start).all()
    assert found.rounds.train_loss.isna().tolist() == [False, True, True]


def test_of_who_is_too_late_nothing_is_kept_until_it_sends_in_time(simulate):
    """Over-selection: the last of six is not among the first five."""
    system = "network('200kbit/s', '1Mbit/s', latency='5ms', law='lognormal', spread=0.7)"
    system += " | first(0.8)"
    _, results = watched(simulate, strategy="ampere", rounds=3, system=system)
    late = {k for k, one in results[1].traffic.items() if one.dropped}
    assert late and all("not among the first" in results[1].traffic[k].dropped for k in late)
    for client in range(6):
        assert (rows_of(results[1].weights, client) is None) == (client in late)
    assert {*results[2].traffic} == late


# With all that is around.


def test_an_estimate_is_what_the_run_takes(simulate):
    values = {"strategy": "ampere(alone=2)", "rounds": 5, "fraction": 0.5, "local_steps": 3}
    found = simulate(**values, codec="uniform(bits=4)")
    cost = Estimator()(setup_of(found))
    rounds = found.rounds.sum()
    assert cost.payload_bytes == rounds.payload_bytes_up
    assert cost.head_bytes == rounds.head_bytes_up + rounds.head_bytes_down
    assert cost.client_flops == rounds.client_flops
    assert (cost.steps, cost.samples) == (rounds.client_steps, rounds.samples)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_stopped_and_resumed_equals_never_stopped(reference, simulate, resume, tmp_path, number):
    values = {"strategy": "ampere(alone=2)", "rounds": 5, "fraction": 0.5, "local_steps": 2}
    values |= {"checkpoint_every": 1, "tail_optimizer": "adam()", "codec": "adc(ratio=0.3)"}
    whole = reference(**values)

    def stop(row, result):
        if row["round"] == number:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, **values)
    half = type(whole)(tmp_path / "run1")
    resume(half)
    timed = ["wall_seconds", "cpu_seconds"]
    assert half.equals(whole)
    assert half.rounds.drop(columns=timed).equals(whole.rounds.drop(columns=timed))


def test_a_whole_copy_takes_the_memory_of_a_whole_model():
    """What autograd keeps of a batch, but for the loss; while sending it keeps nothing."""
    found = {}
    for strategy in ("ampere(auxiliary='tail')", "fedavg"):
        setup = prepare(Experiment.from_dict({"strategy": strategy}))
        halves = setup.exchange, setup.head, setup.tail, setup.parts.codec
        found[strategy] = memory_of_a_batch(*halves, 16, 10)["head"], setup.client_bytes
    (kept, needed), whole = found.values()
    assert kept == pytest.approx(whole[0], rel=0.01) and needed == whole[1]
    setup = prepare(Experiment.from_dict({"strategy": "ampere"}))
    batch = Batch(*setup.train.batch(np.arange(4)), 10)
    payload = setup.exchange.smash(setup.head, setup.parts.codec, batch, StepId(0, 2, 0, 0), {})
    assert payload.local is None and not payload.carried["tokens"].requires_grad
    assert setup.head.training


def test_one_exchange_in_one_process_is_a_step_of_one_half():
    setup = prepare(Experiment.from_dict({"strategy": "ampere"}))
    head, tail, link = Flat(setup.head), Flat(setup.tail), setup.parts.link()
    batch = Batch(*setup.train.batch(np.arange(4)), 10)
    first, second = (
        setup.exchange.step(head, tail, link, batch, StepId(0, n, 0, 0)) for n in (1, 2)
    )
    assert first.of_head.any() and not first.of_tail.any()
    assert second.of_tail.any() and not second.of_head.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 4, "strategy": "ampere(alone=4)"}, "the tail learns from round 5 on, got"),
        ({"rounds": 4, "exits": "plain(after=1)", "phases": "phase(rounds=1, train='trunk') | "
          "phase()"}, "leave phases at none"),
        ({"codec": "splitcom(threshold=0.1)"}, "sends every sample once"),
        ({"end": 3}, "needs labels on the server"),
        ({"tokens": "residual_gate()"}, "as many tokens of all images"),
        ({"codec": "bottlenet()"}, "a codec that is trained"),
        ({"stack": 4}, "cannot run 4 as one"),
        ({"cut": [1, 2]}, "cut"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as found:
        prepare(Experiment.from_dict({"strategy": "ampere", **changes}))
    assert "\n" not in str(found.value)


def test_who_never_sends_is_counted_before_the_run():
    """20 clients, 4 a round, two rounds that send: at most 8 of them are asked."""
    keys = {"clients": 20, "fraction": 0.2, "rounds": 4, "partition": "iid()"}
    setup = prepare(Experiment.from_dict({**keys, "strategy": "ampere(alone=2)"}))
    population = setup.population()
    asked = {*population.sample(3), *population.sample(4)}
    samples = sum(population.samples[client] for client in set(range(20)) - asked)
    (warning,) = [one.text for one in setup.decisions if one.about == "strategy"]
    assert f"{20 - len(asked)} of 20 clients, with {samples:,} of 1,433 samples" in warning
    all_in = Experiment.from_dict({**keys, "fraction": 1.0, "strategy": "ampere(alone=2)"})
    assert not any(one.about == "strategy" for one in prepare(all_in).decisions)
