"""Clients that learn from an auxiliary classifier: what equals what, what crosses, who waits."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fl_split.exchange.records import HEAD, TAIL, Weights
from fl_split.flat import Flat, flatten, trained
from fl_split.models.beside import Trace
from fl_split.seeds import generator
from simulations.runs.experiment import Experiment
from simulations.runs.saved_model import load_halves
from simulations.runs.setup import prepare
from simulations.runs.trials import memory_of_a_batch
from simulations.studies.cost import Estimator
from strategies.server.tasks import SERVER

WHOLE = "cse_fsl(h=1, auxiliary='tail', tails='per_client')"
RESNET = {
    "model": "resnet18(width=4, small_images=True)", "cut": "stem", "clients": 2, "rounds": 1,
    "local_steps": 2, "batch_size": 8, "partition": "iid",
}  # fmt: skip


def watched(simulate, **changes):
    """Run; return the outcome, and what each round has told."""
    results = []
    return simulate(watch=lambda row, result: results.append(result), **changes), results


@pytest.mark.parametrize("changes", [{}, RESNET], ids=["vit", "resnet"])
def test_with_a_whole_copy_heads_are_those_of_fedavg_and_tails_are_the_auxiliaries(
    simulate, changes
):
    """One tail per client, every batch sent: bit for bit, running statistics included."""
    values = {**changes, "head_optimizer": "sgd(lr=0.05, momentum=0.9)"}
    values["tail_optimizer"] = values["head_optimizer"]
    own, mine = watched(simulate, strategy=WHOLE, **values)
    whole, theirs = watched(simulate, strategy="fedavg", **values)
    for first, second in zip(mine, theirs, strict=True):
        size = len(second.weights[TAIL].numpy())  # what is beside a head comes before its stages
        auxiliary, head = np.split(first.weights[HEAD].numpy(), [size])
        assert (head == second.weights[HEAD].numpy()).all()
        assert (auxiliary == second.weights[TAIL].numpy()).all()
        assert (auxiliary == first.weights[TAIL].numpy()).all()
    assert own.equals(whole)
    for column in ("client_flops", "train_loss", "accuracy", "client_steps"):
        assert own.rounds[column].tolist() == whole.rounds[column].tolist()


def test_a_round_by_the_formulas(simulate):
    """Two clients, SGD, a linear auxiliary, plain autograd: heads apart, the tail in their order.

    Of three batches the first and the third go up, as the head makes them before it steps on them.
    """
    values = {"clients": 2, "rounds": 1, "local_steps": 3, "batch_size": 40}
    values |= {"head_optimizer": "sgd(lr=0.5)", "tail_optimizer": "sgd(lr=0.3)"}
    values["partition"] = "size(partition_sizes=[900, 500])"
    outcome = simulate(strategy="cse_fsl(h=2, auxiliary=0)", **values)
    setup = prepare(Experiment.from_dict({**outcome.summary["experiment"], "out": ""}))
    head, start, sent, ends = Flat(setup.head), flatten(trained(setup.head)), [], []
    (auxiliary,) = setup.head.beside
    for client, rows in enumerate(setup.train.partitions):
        head.load(start)
        order = torch.randperm(len(rows), generator=generator(0, "batches", 1, client, 0))
        for step, part in enumerate(order[:120].split(40)):
            pixels, labels = setup.train.batch(rows[part.numpy()])
            trace = Trace()
            tokens, _ = setup.head(pixels, trace)
            if step != 1:
                sent.append((step, client, tokens.detach(), labels))
            logits = auxiliary.tail.classifiers[0](auxiliary.tail.norm(tokens)[:, 0])
            gradient, _ = head.differentiate([functional.cross_entropy(logits, labels)])
            head.load(head.vector.detach() - 0.5 * gradient)
        ends.append(head.vector.detach().clone())
    tail = Flat(setup.tail)
    for _, _, tokens, labels in sorted(sent, key=lambda one: one[:2]):
        loss = functional.cross_entropy(setup.tail(tokens), labels)
        tail.load(tail.vector.detach() - 0.3 * tail.differentiate([loss])[0])
    head.load(9 / 14 * ends[0] + 5 / 14 * ends[1])
    moved = 0.0
    for name, value in setup.model.state_dict().items():
        torch.testing.assert_close(outcome.model[name], value, atol=3e-7, rtol=1e-4)
        moved = max(moved, float(value.abs().max()))
    assert moved > 1e-3


def test_nothing_comes_down_and_no_client_waits_for_the_server(simulate, reference):
    values = {"local_steps": 4, "codec": "attended(ratio=0.5)", "rounds": 1}
    values |= {"batch_size": 40, "partition": "iid"}
    plain = reference(strategy="parallel", **values)
    found, (result,) = watched(simulate, strategy="cse_fsl(h=3)", **values)
    setup = prepare(Experiment.from_dict({**found.summary["experiment"], "out": ""}))
    rounds, sizes = found.rounds, {"head": 4 * len(flatten(trained(setup.head)))}
    assert rounds.payload_bytes_down.tolist() == [0]
    assert (2 * rounds.payload_bytes_up == plain.rounds.payload_bytes_up).all()  # 2 of 4 batches
    assert (2 * rounds.server_flops == plain.rounds.server_flops).all()
    assert (2 * rounds.smashed_bytes == plain.rounds.smashed_bytes).all()
    assert (rounds.client_steps == plain.rounds.client_steps).all()
    assert (rounds.samples == plain.rounds.samples).all()
    header = len(Weights.of(np.zeros(1000, np.float32)).data) - 4000
    assert rounds.head_bytes_up.tolist() == rounds.head_bytes_down.tolist()
    assert rounds.head_bytes_up.tolist() == [6 * (sizes["head"] + header)]
    tasks = result.tasks
    assert not {"down", "backward", "forward"} & {task.kind for task in tasks}
    for client in range(6):
        own = [task for task in tasks if task.client == client]
        kinds = ["sync down", "train", "encode", "up", "train", "encode", "up", "sync up"]
        assert [task.kind for task in own] == kinds
        assert all(tasks[before].client == client for task in own for before in task.after)
        first, second = (task.amount for task in own if task.kind == "train")
        assert second == 3 * first
    served = [n for n, task in enumerate(tasks) if task.kind == "serve"]
    assert len(served) == 12 and all(tasks[n].client == SERVER for n in served)


def test_a_round_ends_after_the_last_step_of_every_clients_tail(simulate):
    """No client waits for its tail, so the average must."""
    _, (result, *_) = watched(simulate, strategy=WHOLE, rounds=1)
    *before, average = result.tasks
    assert average.kind == "average"
    waited, todo = set(), [*average.after]
    while todo:
        if (number := todo.pop()) not in waited:
            waited.add(number)
            todo += before[number].after
    assert waited == {*range(len(before))}


def test_a_codec_that_remembers_leaves_out_what_has_not_moved(simulate):
    """From the second epoch on nothing is far enough from what was sent."""
    values = {"clients": 2, "rounds": 3, "local_steps": 0, "codec": "splitcom(threshold=1000)"}
    sent = [simulate(strategy=k, **values) for k in ("cse_fsl(h=1)", "parallel")]
    for run in sent:
        first, second, third = run.rounds["payload_bytes_up"]
        assert second == third < first / 50


def test_an_estimate_is_what_the_run_takes(simulate):
    values = {"strategy": "cse_fsl(h=3)", "local_steps": 5, "codec": "uniform(bits=4)"}
    found = simulate(**values)
    cost = Estimator()(prepare(Experiment.from_dict({**found.summary["experiment"], "out": ""})))
    rounds = found.rounds.sum()
    assert cost.payload_bytes == rounds.payload_bytes_up
    assert cost.head_bytes == rounds.head_bytes_up + rounds.head_bytes_down
    assert cost.client_flops == rounds.client_flops
    assert (cost.steps, cost.samples) == (rounds.client_steps, rounds.samples)


def test_who_loses_a_payload_goes_on(simulate, reference):
    """A channel that loses all of them: the tail stays, heads learn as over one that loses none."""
    values = {"strategy": "cse_fsl(h=2)", "rounds": 1, "local_steps": 3, "codec": "fp16 | zstd"}
    lost, (result,) = watched(
        simulate, **values, channel="erasure(p=0.99, packet=100, mode='drop')"
    )
    whole = reference(**values)
    setup = prepare(Experiment.from_dict({**whole.summary["experiment"], "out": ""}))
    assert lost.rounds.lost_payloads_up.tolist() == [12]
    assert (result.weights[TAIL].numpy() == setup.initial_weights()[TAIL].numpy()).all()
    kept = [name for name in whole.model if "embeddings" in name or "layers.0." in name]
    assert kept and all(torch.equal(whole.model[name], lost.model[name]) for name in kept)
    assert lost.rounds.client_flops.tolist() == whole.rounds.client_flops.tolist()
    assert "down" not in {task.kind for task in result.tasks}


def test_exits_learn_beside_an_auxiliary_which_has_no_part_in_their_phase(simulate):
    """The first round trains all but the exit, the second the exit alone."""
    found, results = watched(
        simulate, strategy="cse_fsl(h=2)", local_steps=2, exits="plain(after=1)",
        phases="phase(rounds=1, train='trunk') | phase(train='exits')",
    )  # fmt: skip
    setup = prepare(Experiment.from_dict({**found.summary["experiment"], "out": ""}))
    auxiliary, exits = (len(flatten(trained(part))) for part in setup.head.beside)
    before, first, second = (
        weights[HEAD].numpy()
        for weights in (setup.initial_weights(), *(result.weights for result in results))
    )
    of_exits = slice(auxiliary, auxiliary + exits)
    assert (before[:auxiliary] != first[:auxiliary]).mean() > 0.5
    assert (before[of_exits] == first[of_exits]).all() and (first != second)[of_exits].mean() > 0.5
    assert (np.delete(first, of_exits) == np.delete(second, of_exits)).all()
    assert [result.traffic[0].payload_bytes_up > 0 for result in results] == [True, False]


def test_a_whole_copy_takes_the_memory_of_a_whole_model():
    """What autograd keeps of a batch, but for the loss; weights, gradients, moments."""
    found = {}
    for strategy in ("cse_fsl(auxiliary='tail')", "fedavg", "parallel"):
        setup = prepare(Experiment.from_dict({"strategy": strategy}))
        halves = setup.exchange, setup.head, setup.tail, setup.parts.codec
        found[strategy] = memory_of_a_batch(*halves, 16, 10)["head"], setup.client_bytes
    (kept, needed), whole, split = found.values()
    assert kept == pytest.approx(whole[0], rel=0.01) and kept > 2 * split[0]
    assert needed == whole[1] > split[1]


@pytest.mark.parametrize(
    ("changes", "width"),
    [
        ({"model": "lenet(image_size=16)", "cut": 1}, 16),
        ({**RESNET, "cut": "stage1.2"}, 8),
    ],
)
def test_convolutions_get_a_classifier_of_pooled_features(changes, width):
    setup = prepare(Experiment.from_dict({**changes, "strategy": "cse_fsl(auxiliary=1)"}))
    auxiliary = setup.head.beside[0].tail
    assert [len(auxiliary.stages), auxiliary.stages[1][1].in_features] == [2, width]
    pixels, _ = setup.train.batch(np.arange(8))
    tokens, _ = setup.head(pixels)
    features = auxiliary.stages[0](tokens.transpose(1, 2).reshape(-1, *setup.tail.shape))
    classifier = auxiliary.stages[1][1]
    torch.testing.assert_close(auxiliary(tokens), classifier(features.mean(dim=(2, 3))))


def test_a_trained_run_is_read_back_with_its_auxiliary(simulate):
    found, results = watched(simulate, strategy="cse_fsl", rounds=1, exits="plain(after=1)")
    summary = found.summary
    experiment = Experiment.from_dict({**summary["experiment"], "out": ""})
    _, head, _ = load_halves(found.folder, experiment, prepare(experiment).model_input)
    assert (flatten(trained(head)).numpy() == results[-1].weights[HEAD].numpy()).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end": 3}, "needs labels on the server"),
        ({"tokens": "residual_gate()"}, "as many tokens of all images"),
        ({"codec": "bottlenet()"}, "a codec that is trained"),
        ({"stack": 4}, "cannot run 4 as one"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as found:
        prepare(Experiment.from_dict({"strategy": "cse_fsl", **changes}))
    assert "\n" not in str(found.value)
