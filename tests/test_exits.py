"""Exits: hand-worked answers, gradients against one whole model, bytes, operations, runs."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from fl_split.codecs import Identity
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch
from fl_split.exchange.split import Split
from fl_split.exchange.whole import predict_by_exit
from fl_split.exits import EXITS, exits_of, insert_exits
from fl_split.flat import Flat
from fl_split.models.beside import Trace
from fl_split.models.resnet import ResNet18
from fl_split.models.vit import ViT
from fl_split.seeds import StepId
from fl_split.specs import parse
from fl_split.testing import check_exits
from simulations.runs.checkpoint import read_experiment
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from simulations.studies.cost import Estimator

SMALL = ViT(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)
SPECS = ["plain()", "recursive()", "plain(after='2', weight=0.3)", "recursive(detach=True)"]
"""With exits: the entries of the table, and what their parameters change."""

AT = StepId(0, 1, 0, 0)


def test_specs_name_every_entry():
    assert {spec.partition("(")[0] for spec in SPECS} == {*EXITS} - {"none"}


def halves(spec, cut=2, model=SMALL, channels=1):
    module = model.build(image_size=8, channels=channels, num_classes=4, seed=0)
    head, tail = model.split(module.train(), cut)
    insert_exits(head, tail, parse(spec, EXITS), 4, 0)
    return head, tail


def batch(size=5, channels=1):
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randn(size, channels, 8, 8, generator=draw)
    return Batch(pixels, torch.arange(size) % 4, 4)


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_those_of_one_model_with_the_sum_of_losses(spec):
    head, tail = halves(spec)
    found = batch()
    flat_head, flat_tail = Flat(head), Flat(tail)
    link = Link(Identity(), Identity())
    step = Split().step(flat_head, flat_tail, link, found, AT)
    trace, exits = Trace(), exits_of(head)
    of_server = functional.cross_entropy(tail(head(found.pixels, trace)[0]), found.labels)
    losses = [functional.cross_entropy(one, found.labels) for one in exits.logits(trace)]
    whole = of_server + exits.weight * sum(losses)
    wanted = [*head.parameters(), *tail.parameters()]
    gradients = torch.autograd.grad(whole, wanted)
    expected = torch.cat([one.flatten() for one in gradients])
    torch.testing.assert_close(torch.cat([step.of_head, step.of_tail]), expected)
    assert step.loss == pytest.approx(float(of_server.detach()))


@pytest.mark.parametrize("spec", ["plain(detach=True)", "recursive(detach=True)"])
def test_a_detached_exit_leaves_the_trunk_alone(spec):
    found, link = batch(), Link(Identity(), Identity())
    (alone, tail), (head, tail_too) = halves("none()"), halves(spec)
    first = Split().step(Flat(alone), Flat(tail), link, found, AT)
    second = Split().step(Flat(head), Flat(tail_too), link, found, AT)
    beside = sum(one.numel() for one in head.beside.parameters())
    assert torch.equal(second.of_head[beside:], first.of_head)
    assert torch.equal(second.of_tail, first.of_tail)
    assert bool(second.of_head[:beside].abs().sum() > 0)


def test_recursion_by_hand():
    """Two exits, two classes: p1 = (0.8, 0.2), own answer (0.4, 0.6), gate 0.25."""
    head, _ = halves("recursive()")
    exits = exits_of(head)
    answers, gate = [(0.8, 0.2), (0.4, 0.6)], math.log(0.25 / 0.75)
    for layer, (first, second) in zip(exits.classifiers, answers, strict=True):
        layer.weight.data.zero_()
        layer.bias.data = torch.tensor([math.log(first), math.log(second), -90.0, -90.0])
    exits.gates[0].weight.data.zero_()
    exits.gates[0].bias.data.fill_(gate)
    trace = Trace()
    head(batch(1).pixels, trace)
    first, second = (one.exp()[0, :2].tolist() for one in exits.logits(trace))
    assert first == pytest.approx([0.8, 0.2])
    assert second == pytest.approx([0.25 * 0.4 + 0.75 * 0.8, 0.25 * 0.6 + 0.75 * 0.2])


@pytest.mark.parametrize("spec", [*SPECS, "none()", "plain(after='1, 3')", "plain(weight=0.0)"])
def test_every_entry_keeps_the_laws(spec):
    check_exits(parse(spec, EXITS))


def test_exits_of_feature_maps_read_their_mean():
    head, tail = halves("plain()", cut=3, model=ResNet18(width=4), channels=3)
    found, exits = batch(channels=3), exits_of(head)
    head.eval()
    trace = Trace()
    head(found.pixels, trace)
    assert exits.widths == [one.shape[2] for one in trace.hidden] and len(exits.after) == 3
    means = [one.mean(dim=1) for one in trace.hidden]
    for read, mean, norm in zip(exits.features(trace), means, exits.norms, strict=True):
        torch.testing.assert_close(read, norm(mean))
    answers = predict_by_exit(head, tail.eval(), found.pixels)
    assert [tuple(one.shape) for one in answers] == [(5, 4)] * 4


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ("4", "behind blocks 1..3, got 4; behind the last one is the model's own"),
        ("0", "behind blocks 1..3, got 0"),
        ("2, 1", "in rising order, each once, as '1, 2', got '2, 1'"),
        ("1, 1", "in rising order, each once"),
        ("first", "must be 'all' or numbers of blocks"),
        ("", "must be 'all' or numbers of blocks"),
    ],
)
def test_exits_behind_the_last_block_and_nonsense_are_refused(after, message):
    with pytest.raises(ValueError, match=f"exits: .*{message}"):
        prepare(Experiment.from_dict({"exits": f"plain(after={after!r})", "cut": 2}))


def test_a_stack_of_heads_with_exits_is_refused():
    with pytest.raises(ValueError, match=r"stack: .*without dropout or exits"):
        prepare(Experiment.from_dict({"exits": "plain()", "stack": 4}))


EXCHANGES = {"split": {}, "u-shape": {"end": 2}, "whole": {"strategy": "fedavg()"}}


@pytest.mark.slow
def test_engines_agree(on_ray, simulate, through_state):
    changes = {"exits": "recursive()", **EXCHANGES["u-shape"]}
    inline = simulate(**changes)
    for other in (on_ray(**changes), through_state(**changes)):
        assert inline.equals(other)
        assert inline.rounds["accuracy_exit1"].equals(other.rounds["accuracy_exit1"])
        weights = [load_file(one.folder / "codec.safetensors") for one in (inline, other)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("strategy", ["parallel(average_heads=False)", "centralised()"])
def test_a_stopped_run_goes_on_as_if_it_never_stopped(strategy, simulate, resume):
    """Of runs with phases there is another test."""
    changes = {"exits": "plain()", "checkpoint_every": 1, "strategy": strategy}

    def stop(row, result):
        if row["round"] == 1:
            raise KeyboardInterrupt

    whole = simulate(**changes)
    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, **changes)
    half = type(whole)(whole.folder.parent / "run2")
    resume(half)
    assert whole.equals(half)
    assert whole.rounds["accuracy_exit1"].equals(half.rounds["accuracy_exit1"])


def test_exits_travel_with_heads(simulate):
    """Each of 6 clients has 4 bytes more for each weight, up and down, in both rounds."""
    without, with_exits = simulate(rounds=1), simulate(rounds=1, exits="plain()")
    weights = 2 * 16 + 16 * 10 + 10  # norm, classifier
    for way in ("head_bytes_up", "head_bytes_down"):
        more = with_exits.rounds[way].sum() - without.rounds[way].sum()
        assert more == 6 * 4 * weights
    for way in ("payload_bytes_up", "payload_bytes_down"):
        assert with_exits.rounds[way].equals(without.rounds[way])


def test_sflv1_equals_fedavg(simulate):
    first, second = (simulate(exits="plain()", strategy=one) for one in ("sflv1()", "fedavg()"))
    assert first.equals(second)
    assert first.rounds["accuracy_exit1"].equals(second.rounds["accuracy_exit1"])


def test_what_is_lost_still_teaches_the_exits(simulate):
    """With a channel that loses all, the trunk learns from exits alone, the tail not at all."""
    alone = {"rounds": 1, "clients": 1, "local_steps": 0, "codec": "zstd()"}
    lost = {**alone, "channel": "erasure(p=0.99, packet=500, mode='drop')"}
    first, again = simulate(exits="plain()", **lost), simulate(exits="plain()", **alone)
    assert (first.rounds["lost_payloads_up"] == first.rounds["client_steps"]).all()
    before = simulate(exits="plain(weight=0.0)", **lost)
    same = {name for name, one in first.model.items() if torch.equal(one, before.model[name])}
    assert any(name.startswith("classifier") for name in same)
    assert not any("layers.0" in name or "layer.0." in name for name in same)
    assert first.rounds["accuracy_exit1"][0] > before.rounds["accuracy_exit1"][0]
    assert first.rounds["client_flops"][0] == again.rounds["client_flops"][0]
    apart = {"exits": "plain(detach=True)", "cut": 2}
    setup = prepare(Experiment.from_dict({**before.summary["experiment"], **apart, "out": ""}))
    detached = simulate(**apart, **lost).rounds.iloc[0]
    each = setup.head.forward_flops(1) + 3 * 2 * 16 * 10 * 2
    assert detached["client_flops"] == detached["samples"] * each


def test_losses_in_a_phase_of_the_trunk_teach_nobody(simulate):
    lost = {"codec": "zstd()", "channel": "erasure(p=0.3, packet=500, mode='drop')"}
    found = simulate(exits="plain()", phases="phase(train='trunk')", **lost)
    assert found.equals(simulate(**lost))
    assert found.rounds["lost_payloads_up"].sum() > 0 and found.rounds["dropped"].sum() == 0


@pytest.mark.parametrize(
    "aggregation", ["fedadam()", "fedavgm()", "dp(noise_multiplier=0.1, clipping_norm=1.0)"]
)
def test_a_server_s_optimiser_moves_nothing_that_a_phase_leaves_alone(aggregation, simulate):
    staged = simulate(exits="plain()", phases=STAGED["disjoint"], aggregation=aggregation)
    assert staged.rounds["accuracy"][0] == staged.rounds["accuracy"][1]
    assert staged.rounds["loss"][0] == staged.rounds["loss"][1]


def test_sflv1_equals_fedavg_in_a_phase_of_exits_too(simulate):
    keys = {
        "exits": "plain()",
        "phases": STAGED["disjoint"],
        "clip": "norm(limit=0.1, halves=True)",
    }
    first, second = (simulate(strategy=one, **keys) for one in ("sflv1()", "fedavg()"))
    assert first.equals(second)
    for column in ("accuracy_exit1", "train_loss"):
        assert first.rounds[column].equals(second.rounds[column])
    assert first.rounds["client_flops"][1] == second.rounds["client_flops"][1]


def test_the_accuracy_of_exits_is_that_of_their_answers(simulate):
    outcome = simulate(exits="plain()")
    assert outcome.rounds["accuracy_exit1"].between(0, 1).all()
    setup = prepare(Experiment.from_dict({**outcome.summary["experiment"], "out": ""}))
    from simulations.runs.saved_model import load_halves

    halves_of_run = load_halves(outcome.folder, setup.experiment, setup.model_input)
    head, tail = (one.eval() for one in halves_of_run[1:])
    pixels, labels = setup.test.batch(np.arange(len(setup.test.labels)))
    with torch.no_grad():
        server, first = predict_by_exit(head, tail, pixels)
    for column, logits in (("accuracy", server), ("accuracy_exit1", first)):
        right = (logits.argmax(1) == labels).float().mean()
        assert outcome.rounds[column].iloc[-1] == pytest.approx(float(right))


STAGED = {
    "disjoint": "phase(rounds=1, train='trunk') | phase(train='exits')",
    "mixed": "phase(rounds=1, train='trunk') | phase(train='all')",
}
DECAYED = {
    "local_steps": 0,
    "head_optimizer": "adamw(lr=0.01, weight_decay=0.1)",
    "tail_optimizer": "adamw(lr=0.01, weight_decay=0.1)",
}
"""With a decay that would move weights which get no gradient."""


@pytest.mark.parametrize(
    "strategy", ["parallel", "sflv1", "sflv2", "mergesfl", "fedavg", "local", "centralised"]
)
def test_a_phase_of_exits_moves_nothing_else_and_sends_nothing(strategy, simulate):
    """Two rounds, of which the second trains exits: the model is that of one round without any."""
    keys = {"strategy": strategy, "clients": 2, **DECAYED}
    staged = simulate(exits="plain()", phases=STAGED["disjoint"], **keys)
    alone = simulate(rounds=1, **keys)
    assert staged.equals(alone)
    first, second = staged.rounds["accuracy_exit1"]
    rounds = staged.rounds
    assert rounds["payload_bytes_up"].tolist() == [alone.rounds["payload_bytes_up"][0], 0]
    flops = "server_flops" if strategy == "centralised" else "client_flops"
    assert rounds["server_flops"].iloc[1] == (rounds[flops].iloc[1] if flops[0] == "s" else 0)
    assert 0 < rounds[flops].iloc[1] < rounds[flops].iloc[0]
    assert rounds["samples"].tolist() == [alone.rounds["samples"][0]] * 2
    assert rounds["train_loss"].notna().all() and second != first


def test_a_phase_of_the_trunk_is_as_if_there_were_no_exits(simulate):
    """Its results, operations and payloads, bit for bit; exits stay as they were drawn."""
    keys = {**DECAYED, "clients": 1}
    trunk = simulate(exits="plain()", phases="phase(train='trunk')", **keys)
    without = simulate(**keys)
    assert trunk.equals(without)
    for column in ("client_flops", "payload_bytes_up", "train_loss"):
        assert trunk.rounds[column].equals(without.rounds[column])
    drawn = prepare(Experiment.from_dict({**trunk.summary["experiment"], "out": ""})).head.beside
    kept = load_file(trunk.folder / "codec.safetensors")
    assert all(torch.equal(kept[f"beside.{name}"], one) for name, one in drawn.state_dict().items())


def test_operations_of_a_phase_of_exits_by_hand(simulate):
    """The head forward, and three products of each exit; nothing of the server."""
    staged = simulate(exits="plain()", phases=STAGED["disjoint"])
    setup = prepare(Experiment.from_dict({**staged.summary["experiment"], "out": ""}))
    samples = staged.rounds["samples"].iloc[1]
    each = setup.head.forward_flops(1) + 3 * 2 * 16 * 10
    assert staged.rounds["client_flops"].iloc[1] == samples * each


@pytest.mark.slow
@pytest.mark.parametrize(
    ("regime", "case"),
    [("disjoint", "split"), ("disjoint", "whole"), ("mixed", "split"), ("mixed", "u-shape")],
)
def test_phases_agree_on_every_engine_and_after_a_resume(regime, case, on_ray, simulate, resume):
    changes = {"exits": "plain()", "phases": STAGED[regime], **EXCHANGES[case]}
    inline = simulate(checkpoint_every=1, **changes)

    def stop(row, result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, checkpoint_every=1, **changes)
    half = type(inline)(inline.folder.parent / "run2")
    resume(half)
    assert inline.equals(on_ray(**changes))
    assert inline.equals(half)
    assert inline.rounds["accuracy_exit1"].equals(half.rounds["accuracy_exit1"])


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ("phase(train='all') | phase(train='exits')", "all phases but the last one need rounds"),
        ("phase(rounds=9, train='trunk') | phase()", "begins after 9 rounds of rounds=2"),
        ("phase(rounds=1, train='exits')", "have 1 rounds of rounds=2; leave rounds out"),
        ("phase(train='heads')", "train must name parts"),
        ("none() | phase()", "none is no phase"),
    ],
)
def test_phases_that_do_not_fit_are_refused(phases, message):
    keys = {"exits": "plain()", "rounds": 2, "phases": phases}
    with pytest.raises(ValueError, match=f"phases: .*{message}"):
        prepare(Experiment.from_dict(keys))


@pytest.mark.parametrize("strategy", ["parallel()", "fedavg()"])
def test_an_estimate_knows_the_phases(simulate, strategy):
    changes = {
        "exits": "plain()", "rounds": 3, "strategy": strategy, "engine": "inline()",
        "phases": "phase(rounds=1, train='trunk') | phase(rounds=1) | phase(train='exits')",
    }  # fmt: skip
    run = simulate(**changes)
    cost, found = Estimator()(prepare(read_experiment(run.folder, {}))), run.summary
    assert cost.client_flops == found["client_flops"]
    assert cost.payload_bytes == found["payload_bytes_up"] + found["payload_bytes_down"]
