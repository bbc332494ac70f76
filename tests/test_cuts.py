"""Cuts of different depth: what is a client's model does not depend on who computes it."""

import pandas as pd
import pytest

from fl_split.specs import parse
from simulations.runs.cut_laws import checked_cut, cuts_of
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from simulations.studies.cost import Estimator
from simulations.system.system import parse_system
from strategies import STRATEGIES
from strategies.checks import check_tasks

VIT = "vit(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, patch_size=4)"
MIXED = {
    "model": VIT,
    "cut": [1, 2, 3],
    "head_optimizer": "sgd(lr=0.05, momentum=0.9)",
    "clients": 4,
    "local_steps": 2,
}
SENT = {**MIXED, "codec": "adc(ratio=0.3)", "downlink": "uniform(bits=4)"}
RESNET = {"model": "resnet18(width=4, small_images=True)", "batch_size": 16, "rounds": 1}

BUILT = {spec: parse(spec, STRATEGIES) for spec in STRATEGIES}
MIXING = [k for k, built in BUILT.items() if built.mixes_cuts and built.sends_smashed_data]
FLOPS = ["client_flops", "server_flops"]


def assert_same(mixed, deepest):
    """Without compression a stage is trained alike, on the client or in its place."""
    assert mixed.equals(deepest)
    same = ["accuracy", "loss", "train_loss", "drift"]
    assert mixed.rounds[same].equals(deepest.rounds[same])
    for one in FLOPS:
        assert (mixed.rounds[one] != deepest.rounds[one]).all()
    assert mixed.rounds[FLOPS].sum(axis=1).equals(deepest.rounds[FLOPS].sum(axis=1))


@pytest.mark.parametrize("name", MIXING)
def test_any_mixture_equals_the_deepest_cut_for_all(simulate, name):
    values = {**MIXED, "strategy": name}
    assert_same(simulate(**values), simulate(**{**values, "cut": 3}))


@pytest.mark.parametrize(
    ("cuts", "changes"),
    [
        (["stem", "stage1.2"], RESNET),  # batch norm: a stand-in has running statistics
        ([1, 2], {"end": 3, "rounds": 1}),
        ([1, 3], {"accumulate": 2, "augment": "mixup()", "precision": "fp16", "rounds": 1}),
    ],
    ids=["resnet", "u-shape", "recipe"],
)
def test_it_does_so_with_any_model_and_recipe(simulate, cuts, changes):
    values = {**MIXED, **changes}
    assert_same(simulate(**{**values, "cut": cuts}), simulate(**{**values, "cut": cuts[-1]}))


def test_where_a_cut_gradient_is_lost_nothing_of_a_client_steps(simulate):
    lossy = {"downlink": "zstd()", "down_channel": "erasure(p=0.999, mode='drop')"}  # all or none
    values = {**MIXED, **lossy, "strategy": "sflv1", "rounds": 1}
    mixed, deepest = (simulate(**{**values, "cut": cut}) for cut in ([1, 3], 3))
    assert mixed.rounds["lost_payloads_down"].tolist() == [8]  # of 4 clients in 2 steps
    assert mixed.equals(deepest)


@pytest.mark.parametrize("optimizer", ["sgd(lr=0.05, momentum=0.9)", "adam(lr=0.01)"])
def test_sflv1_equals_fedavg_with_any_mixture(simulate, optimizer):
    same = {**MIXED, "head_optimizer": optimizer, "tail_optimizer": optimizer}
    first = simulate(strategy="sflv1", **same)
    second = simulate(strategy="fedavg", **{**same, "cut": 2})
    assert first.equals(second)
    assert first.rounds["train_loss"].equals(second.rounds["train_loss"])


@pytest.fixture
def sent(reference):
    return reference(**SENT, stack=1)


def test_a_mixture_does_not_depend_on_stacks_or_on_what_is_kept_live(sent, simulate, through_state):
    pairs = {**SENT, "cut": [1, 1, 3]}  # clients 0 and 1, and 3 with them
    assert simulate(**pairs, stack=2).equals(simulate(**pairs, stack=1))
    assert through_state(**SENT).equals(sent)


def test_a_mixture_does_not_depend_on_the_engine(sent, on_ray):
    assert on_ray(**SENT, stack=1).equals(sent)


def test_a_mixture_goes_on_as_if_never_stopped(sent, simulate, resume, tmp_path):
    def stop(row, result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, **SENT, stack=1, checkpoint_every=1)
    left = type(sent)(tmp_path / "run1")
    resume(left)
    assert left.equals(sent)


def test_a_mixture_is_counted_as_it_is_estimated(sent):
    """Steps, bytes and operations, from nothing but the experiment."""
    found = sent.summary
    cost = Estimator()(prepare(Experiment.from_dict(found["experiment"])))
    assert (cost.steps, cost.samples) == (found["client_steps"], found["samples"])
    assert cost.payload_bytes == found["payload_bytes_up"] + found["payload_bytes_down"]
    assert cost.head_bytes == found["head_bytes_up"] + found["head_bytes_down"]
    assert cost.client_flops == found["client_flops"]


def test_each_client_sends_weights_and_holds_memory_as_its_cut_says(sent):
    """Embeddings of 16 x (16 + 1) and 5 x 16 + 16 numbers, blocks of 3,280 each, in float32."""
    bytes_up = sent.clients.query("round == 1").set_index("client")["head_bytes_up"]
    between = bytes_up.diff().dropna().tolist()  # cuts are 1, 2, 3, 1
    assert between == [4 * 3280, 4 * 3280, -8 * 3280]
    cuts = pd.DataFrame(sent.summary["cuts"])
    assert cuts["stages"].tolist() == [1, 2, 3] and cuts["clients"].tolist() == [2, 1, 1]
    assert cuts["client_bytes"].is_monotonic_increasing
    assert cuts["activation_bytes"].is_monotonic_increasing
    assert cuts["activation_bytes"].iloc[-1] == sent.summary["activation_bytes"]["head"]


def test_tasks_of_a_mixture_keep_the_laws(simulate):
    rounds = []
    simulate(watch=lambda row, result: rounds.append(result), **{**SENT, "rounds": 1})
    (result,) = rounds
    check_tasks(result)
    stood_in = [task for task in result.tasks if task.kind == "stand in"]
    assert len(stood_in) == 3 * 2 * 2  # clients that are cut before block 3; steps; there and back


@pytest.mark.parametrize(
    ("given", "stored", "of_clients"),
    [
        ([1, 2, 3], "1, 2, 3", [1, 2, 3, 1, 2]),
        ((1, "block2"), "1, block2", [1, "block2", 1, "block2", 1]),
        ("3,1", "3, 1", [3, 1, 3, 1, 3]),
        ([2], 2, [2] * 5),
        ("block1", "block1", ["block1"] * 5),
        ("by_device(pi4=1, pi5=3)", "by_device(pi4=1, pi5=3)", None),
    ],
)
def test_cuts_are_read(given, stored, of_clients):
    assert checked_cut(given) == stored == checked_cut(stored)
    system = parse_system("mix(pi4=2, pi5=3)")
    found = cuts_of(stored, 5, 0, system)
    if of_clients is None:
        devices = [system.fleet(5, 0).devices[k].name for k in system.fleet(5, 0).kinds]
        assert sorted(devices) == ["pi4", "pi4", "pi5", "pi5", "pi5"]
        of_clients = [{"pi4": 1, "pi5": 3}[name] for name in devices]
    assert found == of_clients


def test_a_law_draws_cuts_from_the_seed():
    found = cuts_of("uniform(low=2, high=4)", 300, 1, None)
    assert found == cuts_of("uniform(low=2, high=4)", 300, 1, None)
    assert found != cuts_of("uniform(low=2, high=4)", 300, 2, None)
    assert all(
        70 < found.count(cut) < 130 for cut in (2, 3, 4)
    )  # 100 each, give or take four sigma


def test_cuts_of_one_depth_are_one_cut(reference):
    """No client is cut before the others: nothing runs in its place, and no result moves."""
    values = {**MIXED, "rounds": 1}
    one, named = (reference(**{**values, "cut": cut}) for cut in (2, ["block2", 2]))
    assert named.equals(one)
    assert named.summary["cuts"] == []
    assert named.rounds[FLOPS].equals(one.rounds[FLOPS])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cut": [1, 2, 9]}, "cut must be in 1..3"),
        ({"cut": [1, 2, 3, 1, 2]}, "cut: 5 cuts for 4 clients; give one each, or fewer"),
        ({"cut": []}, "a list of cuts must hold numbers from 1 or names, got []"),
        ({"cut": [1, 0]}, "a list of cuts must hold numbers from 1 or names, got [1, 0]"),
        ({"cut": "unifrom(1, 2)"}, "did you mean 'uniform'?"),
        ({"cut": "uniform(3, 1)"}, "high must be at least low, 3, got 1"),
        ({"cut": "by_device(pi5=1)"}, "cut: by_device needs devices; give a system"),
        (
            {"cut": "by_device(pi5=1)", "system": "mix(pi5=1, pi4=1)"},
            "cut: by_device says nothing of pi4; give a cut of each",
        ),
        (
            {"cut": "by_device(pi55=1)", "system": "devices('pi5')"},
            "cut: by_device names 'pi55', and the system has pi5; did you mean 'pi5'?",
        ),
        ({"strategy": "sflv3"}, "cut: cuts of different depth do not work with sflv3(): take one"),
        (
            {"strategy": "parallel(average_heads=False)"},
            "do not work with parallel(average_heads=F",
        ),
        ({"codec": "bottlenet"}, "need a codec without weights of its own"),
        ({"tokens": "random(rate=0.5)"}, "need all tokens; leave tokens at none()"),
        ({"exits": "plain()"}, "do not work with exits"),
        (
            {"freeze": "block2, block3"},
            "a stage between two cuts, or before the first, has nothing to tr",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError) as error:
        prepare(Experiment.from_dict({**MIXED, **changes}))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
