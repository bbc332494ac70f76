"""Phases: what each part's own phase moves and leaves, losses beside, operations, stages of papers.

Regimes of exits are in test_exits.py.
"""

import pytest
import torch
from safetensors.torch import load_file

from fl_split.flat import Flat
from fl_split.models.vit import ViT
from fl_split.optimizers import SGD
from fl_split.recipe.clipping import Norm
from fl_split.recipe.descent import Descent, Recipe
from fl_split.recipe.phases import parse_phases
from fl_split.recipe.schedules import Moment
from simulations.runs.checkpoint import read_experiment
from simulations.runs.experiment import Experiment
from simulations.runs.saved_model import load_halves
from simulations.runs.setup import prepare
from simulations.studies.cost import Estimator

PARTS = ["head", "tail", "codec", "gates", "exits"]
DECAYED = {
    "head_optimizer": "adamw(lr=0.01, weight_decay=0.1)",
    "tail_optimizer": "adamw(lr=0.01, weight_decay=0.1)",
}
"""With a decay that would move weights which get no gradient."""
SMALL = {"clients": 2, "rounds": 1, "batch_size": 256, **DECAYED}
ALL_PARTS = {
    **SMALL, "cut": 2, "codec": "bottlenet(ratio=0.5)", "exits": "plain(after=1)",
    "tokens": "dual_gate(after=1, penalty=0.1)",
}  # fmt: skip
EXCHANGES = {
    "parallel": {},
    "sflv1": {"strategy": "sflv1()"},
    "fedavg": {"strategy": "fedavg()"},
    "u-shape": {
        "end": 3,
        "model": "vit(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, patch_size=4)",
    },
}
NAMES = {"encoder": "codec", "decoder": "codec", "selector": "gates", "beside": "exits"}
"""Parts by the first word of a weight's name; the end of a U-shape is behind the cut."""


def by_part(head, tail):
    found = {}
    for half, own in ((head, "head"), (tail, "tail")):
        for name, weight in half.named_parameters():
            if weight.requires_grad:
                part = NAMES.get(first := name.split(".")[0], "tail" if first == "end" else own)
                found.setdefault(part, []).append(weight.detach().flatten())
    return {part: torch.cat(weights) for part, weights in found.items()}


def moved(outcome):
    """Return the parts of a finished run that are not as they were drawn."""
    setup = prepare(Experiment.from_dict({**outcome.summary["experiment"], "out": ""}))
    _, head, tail = load_halves(outcome.folder, setup.experiment, setup.model_input)
    now, then = by_part(head, tail), by_part(setup.head, setup.tail)
    return {part for part, weights in now.items() if not torch.equal(weights, then[part])}


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_moves_and_nothing_else(part, exchange, simulate):
    found = simulate(**ALL_PARTS, **EXCHANGES[exchange], phases=f"phase(train='{part}')")
    assert moved(found) == {part}


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        ("codec, tail", {"codec", "tail"}),
        ("exits,gates", {"exits", "gates"}),
        ("trunk", {*PARTS} - {"exits"}),
        ("trunk, exits", {*PARTS}),
    ],
)
def test_several_parts_and_groups(train, parts, simulate):
    assert moved(simulate(**ALL_PARTS, phases=f"phase(train='{train}')")) == parts


def test_groups_with_all_parts_are_all(simulate):
    named = simulate(**ALL_PARTS, phases="phase(train='head, tail, codec, gates, exits')")
    assert named.equals(simulate(**ALL_PARTS))


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregation": "fedadam()"},
        {"aggregation": "fedavgm()", "strategy": "sflv1()"},
        {"aggregation": "dp(noise_multiplier=0.1, clipping_norm=1.0)", "strategy": "fedavg()"},
        {"strategy": "parallel(average_heads=False)", "head_optimizer": "sgd(momentum=0.9)",
         "tail_optimizer": "sgd(momentum=0.9)", "clip": "norm(limit=0.1)"},
        {"strategy": "scaffold()"},
        {"strategy": "cyclesl()", "accumulate": 2},
        {"strategy": "centralised()"},
    ],
)  # fmt: skip
def test_whoever_moves_weights_leaves_them(changes, simulate):
    """Two rounds, of which the second trains the codec: head and tail are those of one round."""
    keys = {**SMALL, "codec": "bottlenet(ratio=0.5)", **changes}
    phases = "phase(rounds=1, train='trunk') | phase(train='codec')"
    staged, alone = simulate(**{**keys, "rounds": 2}, phases=phases), simulate(**keys)
    assert staged.equals(alone)
    codecs = [load_file(one.folder / "codec.safetensors") for one in (staged, alone)]
    assert not any(torch.equal(weight, codecs[1][name]) for name, weight in codecs[0].items())


def test_an_average_over_rounds_leaves_what_never_learns(simulate):
    found = simulate(**{**ALL_PARTS, "rounds": 2}, ema=0.7, phases="phase(train='codec')")
    assert moved(found) == {"codec"}


def test_running_statistics_stay_where_their_part_does(simulate):
    keys = {
        **SMALL, "model": "resnet18(width=4, small_images=True)", "cut": "stage1.1",
        "codec": "bottlenet(ratio=0.5)",
    }  # fmt: skip
    assert moved(simulate(**keys, phases="phase(train='codec')")) == {"codec"}
    assert moved(simulate(**keys, phases="phase(train='tail')")) == {"tail"}


@pytest.mark.parametrize("part", ["head", "tail"])
def test_stages_that_the_server_trains_for_a_client_are_the_head_s(part, simulate):
    found = simulate(**SMALL, cut=[1, 2], phases=f"phase(train='{part}')")
    assert moved(found) == {part}


def test_adapters_are_what_a_head_has(tmp_path, simulate):
    pytest.importorskip("peft")
    small = ViT(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)
    module = small.build(image_size=8, channels=1, num_classes=10, seed=0)
    module.save_pretrained(tmp_path / "vit")
    model = f"pretrained(path={str(tmp_path / 'vit')!r}, lora=2)"
    found = simulate(**SMALL, model=model, phases="phase(train='head')").model
    before = module.state_dict()
    others = {name for name in before if not torch.equal(found[name], before[name])}
    assert others and all(".layers.0." in name or ".layer.0." in name for name in others)


def test_exits_behind_the_cut_learn_where_the_tail_does(simulate):
    keys = {**SMALL, "exits": "plain(after='1, 2')"}

    def exits_of(train):
        found = simulate(**keys, phases=f"phase(train='{train}')")
        setup = prepare(Experiment.from_dict({**found.summary["experiment"], "out": ""}))
        halves = load_halves(found.folder, setup.experiment, setup.model_input)[1:]
        pairs = zip(halves, (setup.head, setup.tail), strict=True)
        vectors = [[by_part(one.beside, one.beside) for one in pair] for pair in pairs]
        return [any(not torch.equal(a[k], b[k]) for k in a) for a, b in vectors]

    assert exits_of("exits, head") == [True, False]
    assert exits_of("exits, tail") == [True, True]


def test_the_penalty_counts_where_gates_learn(simulate):
    """In a phase of other parts a run is that without a penalty, bit for bit."""
    keys = {**SMALL, "cut": 2}
    without, with_one = "residual_gate(after=1)", "residual_gate(after=1, penalty=5.0)"
    others, gates = "phase(train='head, tail')", "phase(train='gates')"
    assert simulate(**keys, tokens=with_one, phases=others).equals(
        simulate(**keys, tokens=without, phases=others)
    )
    runs = [simulate(**keys, tokens=one, phases=gates) for one in (with_one, without)]
    first, second = (load_file(one.folder / "codec.safetensors") for one in runs)
    assert not torch.equal(first["selector.token"], second["selector.token"])


def test_clipping_sees_nothing_of_what_stays():
    """A gradient of norm 5 in the tail's own layers is not shortened by a larger one elsewhere."""
    model = ViT(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)
    module = model.build(image_size=8, channels=1, num_classes=4, seed=0)
    tail = model.split(module, 1)[1]
    tail.decoder = torch.nn.Linear(16, 16)
    flat = Flat(tail)
    recipe = Recipe(clip=Norm(limit=5.0), phases=parse_phases("phase(train='tail')"))
    descent, before = Descent(flat, SGD(lr=1.0), recipe), flat.vector.detach().clone()
    decoder = sum(p.numel() for p in tail.decoder.parameters())
    gradient = torch.full_like(before, 100.0)
    gradient[decoder:] = 0.0
    gradient[-2:] = torch.tensor([3.0, 4.0])
    descent.step(gradient, Moment(1, 0, 1, 1))
    expected = torch.zeros_like(before)
    expected[-2:] = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(before - flat.vector.detach(), expected)


ASTC = {
    "codec": "jscc(ratio=0.5)",
    "channel": "awgn(snr_db=10)",
    "phases": "phase(rounds=1, train='trunk') | phase(rounds=1, train='codec') "
    "| phase(train='codec, tail')",
}


def test_the_stages_of_a_codec_over_a_noisy_channel(simulate):
    """Those of ASTC: all without noise in the way of others; the codec alone; codec and tail."""
    keys = {**SMALL, "codec": ASTC["codec"], "channel": ASTC["channel"]}
    third = simulate(**{**SMALL, **ASTC, "rounds": 3})
    staged = "phase(rounds=1, train='trunk') | phase(train='codec')"
    second, first = simulate(**{**keys, "rounds": 2}, phases=staged), simulate(**keys)
    assert second.equals(first)
    head = {name for name in third.model if "embeddings" in name or "layers.0" in name}
    same = {name for name, one in third.model.items() if torch.equal(one, first.model[name])}
    assert same == head
    assert third.rounds["payload_bytes_up"].nunique() == 1


def test_gates_learn_beside_a_backbone_that_stays(simulate):
    """The stages of arXiv 2405.02330: a backbone, then its gates alone."""
    keys = {**SMALL, "cut": 2, "tokens": "residual_gate(after=1, penalty=0.01)"}
    phases = "phase(rounds=1, train='head, tail') | phase(train='gates')"
    staged = simulate(**{**keys, "rounds": 2}, phases=phases)
    assert staged.equals(simulate(**keys, phases="phase(train='head, tail')"))
    assert moved(staged) == {"head", "tail", "gates"}


@pytest.mark.parametrize("strategy", ["parallel()", "fedavg()"])
def test_operations_are_those_of_the_losses_that_count(strategy, simulate):
    """Passes run through all of the model; exits cost something where they learn alone."""
    keys = {**SMALL, "strategy": strategy}
    bare = simulate(**keys).rounds["client_flops"][0]
    with_exits = {**keys, "exits": "plain()"}
    of_tail = simulate(**with_exits, phases="phase(train='tail')").rounds.iloc[0]
    assert of_tail["client_flops"] == bare
    both = simulate(**with_exits, phases="phase(train='exits, tail')").rounds.iloc[0]
    assert both["client_flops"] - bare == both["samples"] * 3 * 2 * 16 * 10


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_an_estimate_knows_all_parts(exchange, simulate):
    phases = " | ".join(f"phase(rounds=1, train='{part}')" for part in [*PARTS, "exits, codec"])
    changes = {**ALL_PARTS, "tokens": "residual_gate(after=1, trained_at='rate')", "rounds": 6}
    run = simulate(**changes, **EXCHANGES[exchange], phases=phases)
    cost, found = Estimator()(prepare(read_experiment(run.folder, {}))), run.summary
    assert cost.client_flops == found["client_flops"]
    assert cost.payload_bytes == found["payload_bytes_up"] + found["payload_bytes_down"]
    assert cost.head_bytes == found["head_bytes_up"] + found["head_bytes_down"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["parallel", "fedavg", "u-shape"])
def test_phases_of_parts_agree_on_every_engine_and_after_a_resume(
    case, on_ray, through_state, simulate, resume
):
    """A run is stopped at the boundary of two phases, and goes on in the second."""
    phases = "phase(rounds=1, train='trunk') | phase(train='codec, gates')"
    changes = {**ALL_PARTS, **EXCHANGES[case], "rounds": 2, "phases": phases}
    inline = simulate(checkpoint_every=1, **changes)

    def stop(row, result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, checkpoint_every=1, **changes)
    half = type(inline)(inline.folder.parent / "run2")
    resume(half)
    for other in (half, on_ray(**changes), through_state(**changes)):
        assert inline.equals(other)
        weights = [load_file(one.folder / "codec.safetensors") for one in (inline, other)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    ("keys", "train", "message"),
    [
        ({}, "heads", "train must name parts .* of all, trunk, head, .*; got 'heads'"),
        ({}, "", "train must name parts"),
        ({}, "head, ", "got ''"),
        ({}, "codec", "this run has no codec to train; it has head, tail$"),
        ({"codec": "bottlenet(ratio=0.5)"}, "codec, exits", "no exits .* has codec, head, tail$"),
        ({"tokens": "norm(rate=0.5)"}, "gates", "no gates to train; it has head, tail$"),
        ({"exits": "plain(after=2)"}, "exits, head", "or take train='exits, tail'$"),
    ],
)
def test_parts_that_are_not_there_are_refused(keys, train, message):
    with pytest.raises(ValueError, match=f"phases: .*{message}"):
        prepare(Experiment.from_dict({**keys, "cut": 1, "phases": f"phase(train='{train}')"}))


def test_a_trunk_needs_no_exits(simulate):
    assert simulate(**SMALL, phases="phase(train='trunk')").equals(simulate(**SMALL))
