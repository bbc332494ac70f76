"""Models beside ViTs: cut by stage, whole again on the other side, honest about batch norm."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import ResNetForImageClassification

from fl_split.codecs import CODECS, Identity, parse_codec
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch
from fl_split.exchange.split import Split
from fl_split.flat import Flat, flatten, trained
from fl_split.models import MODELS
from fl_split.models.cut import insert
from fl_split.models.lenet import LeNet
from fl_split.models.norms import BatchNorm
from fl_split.models.pretrained import Pretrained
from fl_split.models.resnet import ResNet18
from fl_split.models.stages import split
from fl_split.models.vit import ViT
from fl_split.optimizers import OPTIMIZERS
from fl_split.payload import Payload
from fl_split.recipe.descent import Descent
from fl_split.seeds import StepId
from fl_split.specs import parse
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies import STRATEGIES

LENET = {"model": "lenet(image_size=16)", "cut": "conv1", "rounds": 1, "local_steps": 2}
RESNET = {**LENET, "model": "resnet18(width=4, small_images=True)", "cut": "stage1.1"}
STAGES = ["stem", *(f"stage{s}.{n}" for s in (1, 2, 3, 4) for n in (1, 2)), "classifier"]


def build(spec, size=28, channels=1, classes=10, seed=0):
    return spec.build(image_size=size, channels=channels, num_classes=classes, seed=seed)


def lenet():
    return build(LeNet())


def resnet(**arguments):
    return build(ResNet18(width=4, **{"small_images": True, **arguments}), size=12, channels=3)


def train(head, tail, own, batch, step):
    """Take one exchange in one process, and a step of both halves; return the loss."""
    link = Link(Identity(), Identity())
    found = Split().step(head, tail, link, batch, StepId(0, 1, 0, step))
    own[0].step(found.of_head)
    own[1].step(found.of_tail)
    return found.loss


def images(model, count=3):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, *model.image_shape, generator=draw)


def logits(model, pixels):
    found = model(pixels)
    return found if isinstance(found, torch.Tensor) else found.logits


SMALL = {  # of each model a small one, its last cut and its last end
    "lenet": (LeNet(image_size=16), 4, 4),
    "pretrained": (ViT(hidden_size=16, num_hidden_layers=3, num_attention_heads=2), 2, 3),
    "resnet18": (ResNet18(width=4, small_images=True), 9, 9),
    "vit": (ViT(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, patch_size=4), 2, 3),
}


@pytest.fixture(params=MODELS)
def small(request, tmp_path):
    """Return a spec of each model, the model, and all places (cut, end) to cut it at."""
    spec, last, last_end = SMALL[request.param]
    if request.param == "pretrained":
        build(spec, size=12, channels=3).save_pretrained(tmp_path)
        spec = Pretrained(str(tmp_path))
    assert type(spec) is MODELS[request.param]
    model = build(spec, size=12, channels=3).train()
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")  # fused attention counts as nothing on a CPU
    cuts = range(1, last + 1)
    return spec, model, [(cut, end) for cut in cuts for end in (0, *range(cut + 1, last_end + 1))]


def steps(head, tail):
    """Return what the parts do, in order."""
    return [lambda pixels: head(pixels)[0], tail, *([head.end] if head.end else [])]


def test_every_model_cut_anywhere_is_the_whole_in_result_and_gradient(small):
    """Each part has a graph of its own: only values and gradients cross the cuts."""
    spec, model, places = small
    pixels = images(spec.split(model, 1)[0])
    expected = logits(model, pixels)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(expected, list(model.parameters()), weights)
    for place in places:
        model.zero_grad()
        value, crossings = pixels, []
        for step in steps(*spec.split(model, *place)):
            leaf = value.detach().requires_grad_()
            value = step(leaf)
            crossings.append((leaf, value))
        assert torch.equal(value, expected), place
        gradient = weights
        for leaf, output in reversed(crossings):
            output.backward(gradient)
            gradient = leaf.grad
        for (name, weight), own in zip(model.named_parameters(), wanted, strict=True):
            assert torch.equal(weight.grad, own), (place, name)


def test_every_model_keeps_its_names_and_gives_each_weight_to_one_half(small):
    spec, model, places = small
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for place in places:
        head, tail = spec.split(model, *place)
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], value) for name, value in before.items())
        held = [id(weight) for half in (head, tail) for weight in half.parameters()]
        assert sorted(held) == sorted(id(weight) for weight in model.parameters()), place
        assert tail.num_classes == 10


def test_every_model_refuses_a_cut_behind_its_last(small):
    spec, model, places = small
    cut, end = (max(numbers) for numbers in zip(*places, strict=True))
    with pytest.raises(ValueError, match="cut must be in"):
        spec.split(model, cut + 1)
    with pytest.raises(ValueError, match="end must be in"):
        spec.split(model, 1, end + 1)


def test_every_model_counts_its_flops_as_torch_does(small):
    spec, model, places = small
    for place in places:
        head, tail = spec.split(model, *place)
        if place[1] == 0:  # an end changes nothing of its head
            with FlopCounterMode(display=False) as counter:
                tokens, _ = head(images(head, 5))
                assert head.forward_flops(5) == counter.get_total_flops(), place
                tokens.sum().backward()
            assert head.flops(5) == counter.get_total_flops(), place
        parts = [tail] if place[0] > 1 else steps(head, tail)[1:]  # ends are the same at any cut
        for part in parts:
            count = part.num_tokens or 4
            leaf = torch.randn(3, count, part.width, requires_grad=True)
            with FlopCounterMode(display=False) as counter:
                output = part(leaf)
                assert part.forward_flops(3, count) == counter.get_total_flops(), place
                output.sum().backward()
            assert part.flops(3, count) == counter.get_total_flops(), place


def test_heads_stack_only_if_a_vits_without_dropout_frozen_weights_and_end():
    vit, _, _ = SMALL["vit"]

    def can_stack(spec, *place):
        return spec.split(build(spec, size=16), *place)[0].can_stack

    assert can_stack(vit, 1)
    assert not can_stack(vit, 1, 2)
    assert not can_stack(ViT(num_hidden_layers=2, hidden_dropout_prob=0.1), 1)
    assert not can_stack(LeNet(), 1)
    frozen, _ = vit.split(build(vit, size=16), 1)
    next(frozen.parameters()).requires_grad_(False)
    assert not frozen.can_stack


def test_lenet_has_the_sizes_of_the_paper():
    sizes = [sum(p.numel() for p in stage.parameters()) for stage in lenet().stages().values()]
    assert sizes == [156, 2416, 30840, 10164, 850]
    assert sum(sizes) == 44_426
    head, tail = split(lenet(), "conv1")
    assert head.smashed_shape == (12 * 12, 6)
    assert head.smashed_bytes == 4 * 12 * 12 * 6
    assert (tail.width, tail.num_tokens, tail.num_classes) == (6, 144, 10)


def test_resnet_has_the_parameters_of_torchvisions_resnet_18():
    model = build(ResNet18(), size=32, channels=3, classes=1000)
    statistics = sum(
        s.numel() for m in model.modules() if isinstance(m, BatchNorm) for s in m.statistics()
    )
    assert sum(p.numel() for p in model.parameters()) - statistics == 11_689_512
    assert statistics == 2 * 4800


def test_an_image_too_small_for_lenet_is_refused():
    with pytest.raises(ValueError, match="lenet needs images of 16 pixels a side, got 15"):
        build(LeNet(), size=15)
    assert build(LeNet(), size=16)(torch.zeros(2, 1, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [lenet, resnet])
def test_head_then_tail_is_the_whole_model_at_every_cut(make, training):
    model = make().train(training)
    pixels = images(model)
    expected = logits(model, pixels)
    for number, name in enumerate(list(model.stages())[:-1], 1):
        for cut in (number, name):
            head, tail = split(model, cut)
            tokens, _ = head(pixels)
            assert tokens.shape[1:] == head.smashed_shape
            assert torch.equal(tail(tokens), expected), name
            shared = {id(p) for half in (head, tail) for p in half.parameters()}
            assert shared == {id(p) for p in model.parameters()}


def test_smashed_data_go_position_by_position():
    model = lenet()
    head, _ = split(model, "conv1")
    pixels = images(model)
    tokens, features = head(pixels)[0], model.conv1(pixels)
    assert torch.equal(tokens[1, 12 * 3 + 5], features[1, :, 3, 5])


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("width", [2, 3, 64])
def test_a_batch_of_one_sample_goes_through_where_a_map_is_one_pixel(norm, width):
    model = build(ResNet18(width=width, norm=norm), size=8)
    assert logits(model, images(model, 1)).isfinite().all()
    groups = {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == ({4, 8, 16, 32} if norm == "group" else set()) or width < 64


@pytest.mark.parametrize("arguments", [{"width": 8}, {"small_images": True}, {"norm": "group"}])
def test_a_checkpoint_says_its_own_sizes(arguments):
    with pytest.raises(ValueError, match="path takes width, stem and norm from the checkpoint"):
        ResNet18(path="somewhere", **arguments)


@pytest.mark.parametrize("cut", [0, 5, "linear3", "conv9", "Conv1"])
def test_a_cut_that_is_no_stage_is_refused_with_the_list(cut):
    with pytest.raises(ValueError, match=r"1\.\.4 .*\(conv1, conv2, linear1, linear2\), got"):
        split(lenet(), cut)


def test_the_stages_of_resnet_are_its_layers():
    assert list(resnet().stages()) == STAGES


@pytest.mark.parametrize("codec", ["identity()", "bottlenet(ratio=0.5)"])
@pytest.mark.parametrize(
    ("make", "cut"), [(lenet, "conv1"), (lenet, "linear1"), (resnet, "stem"), (resnet, "stage2.1")]
)
def test_flops_equal_the_counter(make, cut, codec):
    model = make()
    head, tail = split(model, cut)
    insert(head, tail, parse_codec(codec), 0)
    with FlopCounterMode(display=False) as counter:
        tokens = head(images(model, 5))[0]
        assert head.forward_flops(5) == counter.get_total_flops()
        tokens.sum().backward()
    assert head.flops(5) == counter.get_total_flops()
    leaf = torch.randn(3, tail.num_tokens, tail.width, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output = tail(leaf)
        assert tail.forward_flops(3, tail.num_tokens) == counter.get_total_flops()
        output.sum().backward()
    assert tail.flops(3, tail.num_tokens) == counter.get_total_flops()


@pytest.mark.parametrize("optimizer", ["sgd(lr=0.1, momentum=0.9)", "adam(lr=0.01)"])
def test_split_training_equals_monolithic_training(optimizer):
    whole, halved = lenet(), lenet()
    head, tail = (Flat(half) for half in split(halved, 2))
    spec = parse(optimizer, OPTIMIZERS)
    own = [Descent(head, spec), Descent(tail, spec)]
    reference = spec.build(flat := Flat(whole).vector)
    labels = torch.arange(3)
    for step in range(3):
        loss = functional.cross_entropy(whole(images(whole)), labels)
        flat.grad = flatten(torch.autograd.grad(loss, list(whole.parameters())))
        reference.step()
        batch = Batch(images(whole), labels, 10)
        assert train(head, tail, own, batch, step) == loss.item()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, halved.state_dict()[name]), name


@pytest.mark.parametrize("optimizer", ["sgd(lr=0.1, weight_decay=0.1)", "adamw(lr=0.1)"])
def test_running_statistics_follow_torchs_own_whatever_the_optimiser(optimizer):
    theirs = nn.BatchNorm2d(5)
    flat = Flat(nn.Sequential(BatchNorm(copy.deepcopy(theirs), keeps_statistics=True)))
    own = Descent(flat, parse(optimizer, OPTIMIZERS))
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        batch = 2 + 3 * torch.randn(4, 5, 6, 6, generator=draw)
        assert torch.equal(
            theirs(batch).detach(), functional.batch_norm(batch, None, None, training=True)
        )
        before = flat.numpy()
        output = flat.module(batch)
        flat.module(batch)  # a forward that is thrown away leaves nothing behind
        assert (flat.numpy() == before).all()
        gradient, _ = flat.differentiate([output.square().sum()])
        own.step(gradient)
    torch.testing.assert_close(flat.module[0].running_mean.data, theirs.running_mean)
    torch.testing.assert_close(flat.module[0].running_var.data, theirs.running_var)
    assert not torch.equal(flat.module[0].weight, torch.ones(5))
    assert not any(value[flat.statistics].any() for value in own.state().values() if value.dim())


def test_a_resnet_learns_as_transformers_own():
    """The same weights, batches and rate; torch keeps running statistics in its own way."""
    spec = ResNet18(width=4)
    ours = build(spec, size=12, channels=3)
    theirs = ResNetForImageClassification(ours.config)
    theirs.load_state_dict(ours.state_dict())
    head, tail = (Flat(half) for half in split(ours, "stage1.1"))
    sgd = parse("sgd(lr=0.02, momentum=0.9)", OPTIMIZERS)
    own = [Descent(head, sgd), Descent(tail, sgd)]
    reference = torch.optim.SGD(theirs.parameters(), lr=0.02, momentum=0.9)
    labels = torch.arange(6)
    for step in range(3):
        pixels = images(ours, 6) + step
        reference.zero_grad()
        loss = functional.cross_entropy(theirs(pixels).logits, labels)
        loss.backward()
        reference.step()
        got = train(head, tail, own, Batch(pixels, labels, 10), step)
        assert got == pytest.approx(loss.item(), rel=1e-4)
    for name, value in theirs.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-3, rtol=1e-3)


def test_batch_norm_is_torchs_in_result_and_gradient():
    theirs = nn.BatchNorm2d(5)
    nn.init.normal_(theirs.weight)
    ours = BatchNorm(copy.deepcopy(theirs), keeps_statistics=True)
    batch, weights = torch.randn(2, 4, 5, 3, 3)
    found = []
    for norm in (theirs, ours):
        leaf = batch.clone().requires_grad_()
        output = norm(leaf)
        gradients = torch.autograd.grad(output, [leaf, norm.weight, norm.bias], weights)
        found.append([output, *gradients])
    assert all(map(torch.equal, *found))
    ours.running_mean.data, ours.running_var.data = theirs.running_mean, theirs.running_var
    assert torch.equal(theirs.eval()(batch), ours.eval()(batch))


def test_one_value_per_channel_becomes_the_bias():
    norm = BatchNorm(nn.BatchNorm2d(5), keeps_statistics=True)
    flat = Flat(norm)
    output = norm(torch.randn(1, 5, 1, 1))
    torch.testing.assert_close(output.flatten(), norm.bias, atol=1e-4, rtol=0)
    assert not flat.differentiate([output.sum()])[0][flat.statistics].any()


@pytest.mark.parametrize("arguments", [{"stats": "batch"}, {"norm": "group"}])
def test_without_running_statistics_everything_is_trained_by_the_optimiser(arguments):
    model = resnet(**arguments)
    assert Flat(model).statistics is None
    assert not any("running" in name for name in model.state_dict())
    assert split(model, "stem")[1].has_batch_norm == ("norm" not in arguments)


def test_group_norm_does_not_let_samples_change_each_other():
    model = resnet(norm="group")
    pixels = images(model)
    alone = torch.cat([logits(model, pixel[None]) for pixel in pixels])
    torch.testing.assert_close(logits(model, pixels), alone, atol=1e-5, rtol=1e-4)


def test_tokens_of_another_number_are_refused():
    _, tail = split(lenet(), "conv1")
    payload = Payload({"tokens": torch.zeros(2, 143, 6)}, {"labels": torch.zeros(2).long()})
    with pytest.raises(ValueError, match=r"tokens must be \(K, 144, 6\), got \(2, 143, 6\)"):
        Link(Identity(), Identity()).arrive(payload.to_bytes(), StepId(0, 1, 0, 0), tail)


# Whole experiments.


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("model", [LENET, RESNET], ids=["lenet", "resnet"])
def test_every_strategy_trains_a_convolutional_model(simulate, name, model):
    if name == "fsl_sage" and model is RESNET:
        model = {**RESNET, "model": "resnet18(width=4, small_images=True, norm='group')"}
    first, again = (simulate(**model, strategy=name) for _ in range(2))
    assert first.equals(again)
    assert first.summary["status"] == "complete"
    assert not (first.clients.get("dropped", "") != "").any()
    assert np.isfinite(first.rounds["loss"]).all()
    if name != "centralised":
        assert first.rounds["client_flops"].sum() > 0


@pytest.mark.parametrize("optimizer", ["sgd(lr=0.05, momentum=0.9)", "adam(lr=0.01)"])
@pytest.mark.parametrize("model", [LENET, RESNET], ids=["lenet", "resnet"])
def test_sflv1_equals_fedavg_exactly(simulate, model, optimizer):
    values = {**model, "head_optimizer": optimizer, "tail_optimizer": optimizer, "rounds": 2}
    assert simulate(**values, strategy="sflv1").equals(simulate(**values, strategy="fedavg"))


def test_cut_by_name_equals_cut_by_number(simulate):
    named = simulate(**{**LENET, "cut": "conv2"})
    assert named.equals(simulate(**{**LENET, "cut": 2}))
    vit = {"rounds": 1, "local_steps": 1}
    assert simulate(**vit, cut="block2").equals(simulate(**vit, cut=2))


SPECS = {"fedlite": "fedlite(length=3)", "bottlenet": "bottlenet(ratio=0.5)"}


@pytest.mark.parametrize("name", [n for n, kind in CODECS.items() if not kind.needs_attention])
def test_codecs_without_attention_work_with_feature_maps(simulate, name):
    outcome = simulate(**LENET, codec=SPECS.get(name, name))
    assert (outcome.clients["dropped"] == "").all()
    assert np.isfinite(outcome.rounds["loss"]).all()
    assert outcome.rounds["ratio"][0] <= 1.05


@pytest.mark.parametrize("codec", ["adc(ratio=0.1)", "attended | uniform(bits=4)"])
def test_codecs_that_need_attention_are_refused_before_training(codec):
    name = codec.partition("(")[0].partition(" ")[0]
    expected = f"codec: {name} needs CLS attention, which lenet does not have; use one of bf16"
    with pytest.raises(ValueError, match=expected):
        prepare(Experiment.from_dict({**LENET, "codec": codec}))


def test_statistics_are_averaged_with_the_weights_and_travel(simulate):
    """One step, no learning: statistics are 0.9 times the old plus 0.1 times the clients'."""
    values = {**RESNET, "cut": "stem", "clients": 2, "local_steps": 1, "strategy": "sflv1",
              "batch_size": 2000, "head_optimizer": "sgd(lr=0.0)"}  # fmt: skip
    outcome, setup = simulate(**values), prepare(Experiment.from_dict({**values}))
    counts = np.array([len(rows) for rows in setup.train.partitions])
    means = []
    for rows in setup.train.partitions:
        pixels, _ = setup.train.batch(np.sort(rows))
        convolved = setup.head.stages[0].embedder.convolution(pixels)
        means.append(convolved.mean(dim=(0, 2, 3)))
    expected = 0.1 * sum(
        mean * share for mean, share in zip(means, counts / counts.sum(), strict=True)
    )
    found = outcome.model["resnet.embedder.embedder.normalization.running_mean"]
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-3)
    sent = 4 * sum(p.numel() for p in trained(setup.head))
    header = outcome.rounds["head_bytes_up"][0] - 2 * sent
    assert 0 < header < 400
    assert sent == 4 * (9 * 4 + 2 * 4 + 2 * 4)  # kernel, affine, statistics


def test_a_parallel_tail_moves_its_statistics_by_the_weighted_mean(simulate):
    values = {**RESNET, "cut": "stem", "clients": 2, "local_steps": 1, "batch_size": 2000,
              "head_optimizer": "sgd(lr=0.0)", "tail_optimizer": "sgd(lr=0.0)"}  # fmt: skip
    first, second = (simulate(**values, strategy=name) for name in ("sflv1", "parallel"))
    for name, value in first.model.items():
        torch.testing.assert_close(value, second.model[name], msg=name)


@pytest.mark.parametrize("strategy", ["parallel", "sflv2", "fedavg"])
@pytest.mark.parametrize("model", [LENET, RESNET], ids=["lenet", "resnet"])
def test_a_client_that_lives_in_its_state_alone_gives_the_same_bits(
    simulate, through_state, model, strategy
):
    """Every message meets a context that knows nothing but its state: forwards are repeated."""

    live, other = (run(**model, strategy=strategy) for run in (simulate, through_state))
    assert live.equals(other)


@pytest.mark.slow
def test_ray_gives_the_bits_of_inline(simulate, on_ray):
    for model in (LENET, RESNET):
        values = {**model, "strategy": "parallel(average_heads=False)"}
        assert simulate(**values).equals(on_ray(**values))


def test_a_resnet_goes_on_after_a_stop_with_the_same_bits(simulate, resume, tmp_path):
    class Stop(Exception):
        pass

    def stop(row, report):
        if report.round == 2:
            raise Stop

    values = {**RESNET, "rounds": 3, "checkpoint_every": 1,
              "strategy": "parallel(average_heads=False)"}  # fmt: skip
    whole = simulate(**values)
    with pytest.raises(Stop):
        simulate(**values, watch=stop)
    stopped = type(whole)(tmp_path / "run2")
    resume(stopped)
    assert stopped.equals(whole)


def test_a_plain_resnet_is_read_back_by_transformers(simulate):
    outcome = simulate(**{**RESNET, "model": "resnet18(width=4)"})
    model, found = ResNetForImageClassification.from_pretrained(
        outcome.folder, output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    pixels = torch.randn(2, 1, 8, 8)
    spec = ResNet18(width=4)
    own = build(spec, size=8).eval()
    own.load_state_dict(outcome.model)
    assert torch.equal(model.eval()(pixels).logits, own(pixels).logits)
    again = build(ResNet18(path=str(outcome.folder)), size=8).eval()
    assert torch.equal(again(pixels).logits, own(pixels).logits)
    with pytest.raises(ValueError, match="cannot load a ResNet"):
        build(ResNet18(path=str(outcome.folder / "nothing")))


def test_what_transformers_cannot_read_back_has_no_config(simulate):
    for model in (LENET, RESNET):
        outcome = simulate(**model)
        assert not (outcome.folder / "config.json").exists()
    own = build(LeNet(image_size=16))
    own.load_state_dict(simulate(**LENET).model)


def test_without_peft_adapters_are_refused_with_the_remedy(monkeypatch, tmp_path):
    import sys

    build(ViT(hidden_size=16, num_attention_heads=2), size=8).save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"lora needs peft: pip install 'fl-split\[lora\]'"):
        build(Pretrained(path=str(tmp_path), lora=2), size=8)
