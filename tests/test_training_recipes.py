"""Full recipes in whole runs: equal where algorithms are, frozen stages, averages, precision."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fl_split.codecs import Identity
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch
from fl_split.exchange.split import Split
from fl_split.flat import Flat, flatten
from fl_split.models.freezing import freeze
from fl_split.models.lenet import LeNet
from fl_split.models.resnet import ResNet18
from fl_split.models.vit import ViT, split
from fl_split.recipe.precision import Precision
from fl_split.seeds import StepId
from simulations.clients import together
from simulations.clients.state import ClientState
from simulations.runs import checkpoint
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare

FULL = {
    "augment": "crop(padding=1) | flip() | mixup()",
    "schedule": "cosine(warmup=0.5)",
    "clip": "norm(limit=0.5, halves=True)",
    "head_optimizer": "adamw(lr=0.01, no_decay=True)",
    "tail_optimizer": "adamw(lr=0.02, no_decay=True)",
    "label_smoothing": 0.1,
    "accumulate": 2,
    "ema": 0.5,
    "rounds": 3,
}
EXCHANGES = {"split": {}, "u-shape": {"end": 2}, "whole": {"strategy": "fedavg()"}}
SMALL = ViT(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)


def is_equal(first, second):
    columns = ["accuracy", "loss", "train_loss", "samples"]
    same = first.rounds[columns].equals(second.rounds[columns])
    return same and first.equals(second)


def stop_after(number):
    def watch(row, result):
        if row["round"] == number:
            raise KeyboardInterrupt

    return watch


def test_sflv1_equals_fedavg_under_a_full_recipe(simulate):
    first, second = (simulate(**FULL, strategy=one) for one in ("sflv1()", "fedavg()"))
    assert is_equal(first, second)


@pytest.mark.parametrize("strategy", ["sflv2()", "sflv1()", "fedavg()", "centralised()"])
def test_one_client_is_trained_alike_by_all(simulate, strategy):
    """In one round, as private optimisers of a head differ from those that start anew."""
    alone = {**FULL, "clients": 1, "rounds": 1, "schedule": "cosine(warmup=0.25)"}
    assert is_equal(simulate(**alone), simulate(**alone, strategy=strategy))


def test_the_norm_is_that_of_the_whole_model_where_one_process_has_it(simulate):
    """Only there does it matter whether halves are clipped by themselves."""
    short = {"clip": "norm(limit=0.01)"}, {"clip": "norm(limit=0.01, halves=True)"}
    by_sgd = {"head_optimizer": "sgd(lr=1.0)", "tail_optimizer": "sgd(lr=1.0)", "rounds": 1}
    for strategy, matters in (("parallel()", False), ("fedavg()", True), ("centralised()", True)):
        runs = [simulate(**by_sgd, **one, strategy=strategy) for one in short]
        assert runs[0].equals(runs[1]) is not matters, strategy


@pytest.mark.slow
@pytest.mark.parametrize("case", EXCHANGES)
def test_engines_agree_under_a_full_recipe(case, on_ray, reference, through_state):
    changes = {**FULL, **EXCHANGES[case]}
    inline = reference(**changes)
    assert is_equal(inline, on_ray(**changes))
    assert is_equal(inline, through_state(**changes))


ALONE = {
    "private": {"strategy": "parallel(average_heads=False)", "ema": 0.0},
    "centralised": {"strategy": "centralised()"},
    "lossy": {"channel": "erasure(p=0.2, packet=100000, mode='drop')", "codec": "zstd()"},
}


@pytest.mark.parametrize("case", [*EXCHANGES, *ALONE])
def test_a_stopped_run_goes_on_as_if_it_never_stopped(case, simulate, resume):
    changes = {**FULL, **{**EXCHANGES, **ALONE}[case], "checkpoint_every": 1}
    whole = simulate(**changes)
    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop_after(2), **changes)
    half = type(whole)(whole.folder.parent / "run2")
    resume(half)
    assert is_equal(whole, half)


def test_stacked_heads_see_the_same_images(simulate, monkeypatch):
    changes, stacked = {**FULL, "batch_size": 16, "local_steps": 4}, []

    def noted(stack):
        stacked.append(len(stack))
        return forward(stack)

    forward = together._forward
    monkeypatch.setattr(together, "_forward", noted)
    alone = simulate(**changes, stack=1)
    assert not stacked
    assert is_equal(alone, simulate(**changes, stack=3))
    assert 3 in stacked


def test_nothing_that_was_accumulated_is_lost_with_a_payload(simulate, tmp_path):
    """Between two rounds neither the tail nor a private head has gradients left."""
    changes = {**ALONE["lossy"], **ALONE["private"], "accumulate": 2, "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        simulate(**changes, batch_size=16, rounds=4, local_steps=5, watch=stop_after(3))
    found = checkpoint.read(tmp_path / "run1")[1]
    kept = [ClientState.read(state).moments for state in found.clients.values()]
    assert kept and found.moments["tail"]
    assert not any("accumulated" in moments for moments in [*kept, found.moments["tail"]])
    lost = pd.read_csv(tmp_path / "run1" / "rounds.csv")["lost_payloads_up"]
    assert lost.sum() > 3


# Moving average.


@pytest.mark.parametrize("strategy", ["parallel()", "centralised()", "fedavg()"])
def test_the_moving_average_is_what_is_saved_and_tested(simulate, strategy):
    """w1, then d w1 + (1 - d) w2: the weights of two runs without one."""
    one, two = simulate(rounds=1, strategy=strategy), simulate(rounds=2, strategy=strategy)
    mean = simulate(rounds=2, ema=0.75, strategy=strategy)
    for name, found in mean.model.items():
        wanted = 0.75 * one.model[name] + 0.25 * two.model[name]
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    assert mean.rounds["accuracy"][0] == one.rounds["accuracy"][0]
    assert mean.rounds["train_loss"].equals(two.rounds["train_loss"]), (
        "training knows nothing of it"
    )
    assert mean.rounds["loss"][1] != two.rounds["loss"][1]


# Freezing.


def test_frozen_stages_stay_and_are_not_sent(simulate):
    frozen = simulate(cut=2, freeze="embeddings, block1")
    plain = simulate(cut=2)
    start = prepare(Experiment.from_dict(frozen.summary["experiment"])).model.state_dict()
    for name, value in start.items():
        is_still = torch.equal(value, frozen.model[name])
        is_frozen = "embeddings" in name or "layers.0" in name
        assert is_still is is_frozen, name
    bytes_of_frozen = 4 * sum(
        value.numel() for name, value in start.items() if "embeddings" in name or "layers.0" in name
    )
    clients = int(plain.rounds["clients"][0])
    saved = plain.rounds["head_bytes_up"][0] - frozen.rounds["head_bytes_up"][0]
    assert saved == pytest.approx(clients * bytes_of_frozen, abs=8 * clients)


@pytest.mark.parametrize(
    "names", ["embeddings", "embeddings, block1", "block1", "block2", "block3", "classifier"]
)
def test_operations_of_frozen_stages_equal_torchs_counter(names):
    model = SMALL.build(image_size=16, channels=3, num_classes=7, seed=0)
    model.set_attn_implementation("eager")
    freeze(model, names)
    head, tail = split(model, 2)
    with FlopCounterMode(display=False) as counter:
        head(torch.randn(5, 3, 16, 16))[0].sum().backward()
    assert head.flops(5) == counter.get_total_flops()
    leaf = torch.randn(3, 17, tail.width, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        tail(leaf).sum().backward()
    assert tail.flops(3, 17) == counter.get_total_flops()


def test_a_frozen_batch_norm_goes_by_its_running_statistics():
    spec = ResNet18(width=4)
    model = spec.build(image_size=12, channels=3, num_classes=10, seed=0)
    names = list(model.stages())
    freeze(model, names[0])
    head, _ = spec.split(model.train(), 2)
    before = flatten([*model.stages()[names[0]].parameters()])
    images = torch.randn(4, 3, 12, 12)
    found = model.stages()[names[0]](images)
    flat = Flat(head)
    gradient, _ = flat.differentiate([head(images)[0].sum()])
    assert len(gradient) == sum(p.numel() for p in head.parameters() if p.requires_grad)
    assert torch.equal(found, model.eval().stages()[names[0]](images))
    assert torch.equal(before, flatten([*model.stages()[names[0]].parameters()]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"freeze": "embedding"}, "freeze: unknown stage 'embedding'; did you mean 'embeddings'"),
        (
            {"freeze": "embeddings, block1", "cut": 1},
            "freeze: .* to train before cut=1",
        ),
        ({"model": "lenet(image_size=16)", "freeze": "conv9"}, "freeze: unknown stage 'conv9'"),
        ({"schedule": "cosine(warmup=20)"}, "schedule: warmup=20 takes the whole run of rounds=20"),
        ({"schedule": "step(every=30)"}, "schedule: the first step comes after 30 rounds"),
        ({"ema": 0.9, "strategy": "local()"}, "ema: .* leaves models with the clients"),
        ({"budget": "patience(of='client_accuracy')"}, "budget: .* needs samples .* holdout=0.1"),
        ({"clip": "norm(limit=0.0)"}, "limit must be greater than 0"),
        ({"stack": 4, "freeze": "embeddings"}, "stack: heads of this run cannot run 4 as one"),
        ({"schedule": "cosine(warmup=1, per='round')"}, "warmup must be more than one round with"),
        ({"precision": "fp8"}, "precision must be .*'fp32'.*'bf16'"),
        ({"label_smoothing": 1.0}, "label_smoothing must be less than 1"),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        prepare(Experiment.from_dict(keys))


def test_stages_of_models_in_stages_are_frozen_by_their_names():
    model = LeNet().build(image_size=32, channels=1, num_classes=10, seed=0)
    first, *others = model.stages()
    freeze(model, first)
    assert not any(p.requires_grad for p in model.stages()[first].parameters())
    assert all(p.requires_grad for name in others for p in model.stages()[name].parameters())


def test_patience_ends_a_run(simulate):
    """Rates of 0 change nothing, so that no round is better than the first."""
    still = {"head_optimizer": "sgd(lr=0.0)", "tail_optimizer": "sgd(lr=0.0)"}
    outcome = simulate(**still, rounds=9, budget="patience(3, least=0.01)")
    assert len(outcome.rounds) == 4
    assert outcome.summary["ended_by"].startswith("patience")


# Precision.


def halves(seed=0):
    model = SMALL.build(image_size=8, channels=1, num_classes=4, seed=seed)
    return model, *map(Flat, split(model, 1))


def step(name, scale=1.0):
    _, head, tail = halves()
    draw = torch.Generator().manual_seed(1)
    batch = Batch(torch.randn(8, 1, 8, 8, generator=draw), torch.arange(8) % 4, 4)
    exchange, link = Split(precision=Precision(name)), Link(Identity(), Identity())
    return exchange.step(head, tail, link, batch, StepId(0, 1, 0, 0))


def test_bf16_is_torchs_autocast():
    """The whole model under torch.autocast; the cut is in fp32, as sums in a block are."""
    found = step("bf16")
    model, head, tail = halves()
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images).logits
    loss = functional.cross_entropy(logits.float(), torch.arange(8) % 4)
    loss.backward()
    assert found.loss == pytest.approx(loss.item(), rel=1e-3)
    for flat, gradient in ((head, found.of_head), (tail, found.of_tail)):
        wanted = torch.cat([p.grad.flatten() for p in flat.module.parameters()])
        assert float((gradient - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_is_near_to_fp32(name):
    exact, found = step("fp32"), step(name)
    assert found.loss != exact.loss
    assert found.loss == pytest.approx(exact.loss, rel=0.02)
    for ours, theirs in ((found.of_head, exact.of_head), (found.of_tail, exact.of_tail)):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.05


def test_tiny_gradients_do_not_vanish_in_fp16():
    """A backward pass is linear: a gradient of 2^-40 gives 2^-40 times that of 1."""
    _, head, _ = halves()
    precision, found = Precision("fp16"), []
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for scale in (1.0, 2.0**-40):
        with precision.forward(images):
            tokens = head.module(images)[0].float()
        found.append(precision.differentiate(head, [tokens], [torch.full_like(tokens, scale)])[0])
    assert torch.equal(found[0] * 2.0**-40, found[1])
    assert bool(found[1].any())


@pytest.mark.parametrize("case", EXCHANGES)
def test_payloads_weigh_the_same_in_every_precision(case, simulate):
    runs = [simulate(**EXCHANGES[case], rounds=1, precision=one) for one in ("fp32", "bf16")]
    columns = ["payload_bytes_up", "payload_bytes_down", "head_bytes_up", "client_flops"]
    assert runs[0].rounds[columns].equals(runs[1].rounds[columns])
    assert runs[0].rounds["train_loss"][0] != runs[1].rounds["train_loss"][0]
    assert all(value.dtype == torch.float32 for value in runs[1].model.values())


def test_sflv1_equals_fedavg_in_bf16(simulate):
    first, second = (
        simulate(precision="bf16", strategy=strategy) for strategy in ("sflv1()", "fedavg()")
    )
    assert is_equal(first, second)


def test_a_saved_average_is_not_what_training_goes_on_with(simulate, tmp_path):
    """The checkpoint has both: weights in training, and their average."""
    with pytest.raises(KeyboardInterrupt):
        simulate(ema=0.5, rounds=4, checkpoint_every=2, watch=stop_after(3))
    saved = load_file(tmp_path / "run1" / "checkpoint.safetensors")
    assert not np.array_equal(saved["weights/head"].numpy(), saved["moments/ema/head"].numpy())
