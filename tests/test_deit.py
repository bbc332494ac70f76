"""DeiT's second token and second classifier, against transformers' own models."""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
)

from fl_split.codecs import Identity, parse_codec
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch
from fl_split.exchange.split import Split
from fl_split.exchange.stacked import StackedHead
from fl_split.exchange.whole import joined, predict
from fl_split.flat import Flat, trained
from fl_split.models.lora import merged
from fl_split.models.pretrained import Pretrained
from fl_split.models.vit import split
from fl_split.optimizers import SGD
from fl_split.recipe.descent import Descent
from fl_split.seeds import StepId

ONE, TWO = DeiTForImageClassification, DeiTForImageClassificationWithTeacher
SIZES = {"image_size": 8, "channels": 1, "seed": 0}


def original(architecture, num_labels=10):
    """Return a small model whose weights are all drawn, none zero: 2 prefix tokens, 4 patches."""
    config = DeiTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=num_labels,
    )
    model, draw = architecture(config).eval(), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=draw)
    return model


def saved(folder, model):
    model.save_pretrained(folder)
    return str(folder)


def pixels(count=5, size=8):
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", [ONE, TWO])
@pytest.mark.parametrize(("cut", "end"), [(1, 0), (2, 0), (1, 2)])
def test_joined_halves_give_the_logits_of_transformers(tmp_path, architecture, cut, end):
    model = original(architecture)
    path = saved(tmp_path, model)
    head, tail = split(Pretrained(path).build(**SIZES, num_classes=10), cut, end)
    assert head.smashed_shape == (2 + 4, 16)
    torch.testing.assert_close(predict(head, tail, pixels()), model(pixels()).logits.detach())


@pytest.mark.parametrize("architecture", [ONE, TWO])
def test_at_another_image_size_too(tmp_path, architecture):
    """All patches have one position, which no kernel of interpolation changes; ours antialiases."""
    model = original(architecture)
    rows = model.deit.embeddings.position_embeddings.data
    rows[:, 2:] = rows[:, 2:3]
    path = saved(tmp_path, model)
    head, tail = split(Pretrained(path, image_size=16).build(**SIZES, num_classes=10), 1)
    assert head.smashed_shape == (2 + 16, 16)
    expected = model(pixels(size=16), interpolate_pos_encoding=True).logits.detach()
    found = predict(head, tail, pixels(size=16))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_cls_attention_is_that_of_transformers(tmp_path):
    model = original(ONE)
    path = saved(tmp_path, model)
    head, _ = split(Pretrained(path).build(**SIZES, num_classes=10), 2)
    model.set_attn_implementation("eager")
    row = model(pixels(), output_attentions=True).attentions[1].mean(dim=1)[:, 0]
    torch.testing.assert_close(head(pixels())[1](), row)


@pytest.mark.parametrize("architecture", [ONE, TWO, DeiTModel])
def test_a_new_classifier_is_drawn_and_all_else_loaded(tmp_path, architecture):
    model = original(architecture)
    path = saved(tmp_path, model)
    loaded = Pretrained(path).build(**SIZES, num_classes=7)
    assert predict(*split(loaded, 1), pixels()).shape == (5, 7)
    assert isinstance(loaded, TWO if architecture is TWO else ONE)
    backbone = loaded.deit.state_dict()
    expected = model.base_model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in backbone.items())


def test_without_distillation_token_it_is_no_deit(tmp_path):
    model = original(ONE)
    state = {k: v for k, v in model.state_dict().items() if "distillation" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"holds no ViT: .*distillation_token is missing"):
        Pretrained(str(tmp_path)).build(**SIZES, num_classes=10)


@pytest.mark.parametrize("architecture", [ONE, TWO])
@pytest.mark.parametrize("lora", [0, 2])
def test_flops_equal_the_counter(tmp_path, architecture, lora):
    if lora:
        pytest.importorskip("peft")
    path = saved(tmp_path, original(architecture))
    model = Pretrained(path, lora=lora).build(**SIZES, num_classes=10)
    model.set_attn_implementation("eager")  # fused attention counts as nothing on a CPU
    head, tail = split(model, 2)
    with FlopCounterMode(display=False) as counter:
        tokens = head(pixels())[0]
        assert head.forward_flops(5) == counter.get_total_flops()
        tokens.sum().backward()
    assert head.flops(5) == counter.get_total_flops()
    leaf = torch.randn(3, 6, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output = tail(leaf)
        assert tail.forward_flops(3, 6) == counter.get_total_flops()
        output.sum().backward()
    assert tail.flops(3, 6) == counter.get_total_flops()


@pytest.mark.parametrize("architecture", [ONE, TWO])
def test_lora_trains_adapters_and_every_classifier(tmp_path, architecture):
    pytest.importorskip("peft")
    path = saved(tmp_path, original(architecture))
    model = Pretrained(path, lora=2).build(**SIZES, num_classes=10)
    classifiers = 2 if architecture is TWO else 1
    adapters = 3 * 2 * (2 * 16 + 16 * 2)  # A and B, of queries and values, in 3 blocks
    assert sum(p.numel() for p in trained(model)) == adapters + classifiers * (16 * 10 + 10)
    plain = merged(model)
    assert plain.state_dict().keys() == original(architecture).state_dict().keys()
    torch.testing.assert_close(plain(pixels()).logits, original(architecture)(pixels()).logits)


@pytest.mark.parametrize("architecture", [ONE, TWO])
def test_an_exchange_is_a_step_on_the_mean_of_logits(tmp_path, architecture):
    """By autograd on transformers' model, which has the mean as its logits."""
    model = original(architecture)
    path = saved(tmp_path, model)
    ours = Pretrained(path).build(**SIZES, num_classes=10)
    head, tail = (Flat(half) for half in split(ours, 1))
    labels = torch.arange(5)
    loss = functional.cross_entropy(model(pixels()).logits, labels)
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    batch, link = Batch(pixels(), labels, 10), Link(Identity(), Identity())
    got = Split().step(head, tail, link, batch, StepId(0, 1, 0, 0))
    for half, gradient in ((head, got.of_head), (tail, got.of_tail)):
        Descent(half, SGD(lr=0.1)).step(gradient)
    assert got.loss == pytest.approx(loss.item(), rel=1e-5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("codec", "least"),
    [
        ("adc(ratio=0.01)", {ONE: 1, TWO: 2}),
        ("attended(ratio=0.01)", {ONE: 2, TWO: 3}),
        ("attended(ratio=0.01, rest=False)", {ONE: 2, TWO: 3}),
    ],
)
@pytest.mark.parametrize("architecture", [ONE, TWO])
def test_tokens_that_are_read_are_always_sent(tmp_path, architecture, codec, least):
    path = saved(tmp_path, original(architecture))
    head, _ = split(Pretrained(path).build(**SIZES, num_classes=10), 1)
    images, labels = pixels(1).expand(4, -1, -1, -1), torch.arange(4)  # equal, so not mixed
    batch = Batch(images, labels, 10)
    sent = Split().smash(head, parse_codec(codec), batch, StepId(0, 1, 0, 0), {})
    tokens = sent.carried["tokens"]
    assert tokens.shape[1] == least[architecture]
    read = 2 if architecture is TWO else 1
    torch.testing.assert_close(tokens[0, :read], head(images)[0][0, :read])


@pytest.mark.parametrize("architecture", [ONE, TWO])
def test_heads_run_as_one(tmp_path, architecture):
    path = saved(tmp_path, original(architecture))
    head, _ = split(Pretrained(path).build(**SIZES, num_classes=10), 2)
    vectors = [Flat(head).vector.detach() * scale for scale in (1.0, 0.9)]
    together = StackedHead(head).run(vectors, pixels(6)).tokens
    for number, vector in enumerate(vectors):
        flat = Flat(head)
        flat.load(vector)
        alone = head(pixels(6)[3 * number :][:3])[0]
        torch.testing.assert_close(together[3 * number :][:3], alone)


@pytest.mark.parametrize("architecture", [ONE, TWO, DeiTModel])
@pytest.mark.parametrize("strategy", ["parallel", "fedavg"])
def test_a_run_trains_it_and_transformers_loads_what_it_leaves(
    simulate, tmp_path, architecture, strategy
):
    path = saved(tmp_path / "base", original(architecture))
    outcome = simulate(
        model=f"pretrained(path={path!r})", codec="adc(ratio=0.3)", strategy=strategy
    )
    assert (outcome.clients["dropped"] == "").all()
    model = AutoModelForImageClassification.from_pretrained(outcome.folder)
    assert isinstance(model, TWO if architecture is TWO else ONE)
    again = Pretrained(str(outcome.folder)).build(**SIZES, num_classes=10)
    found = joined(*split(again, 1), pixels())
    torch.testing.assert_close(found, model(pixels()).logits)
    before = original(architecture).base_model.state_dict()
    after = model.base_model.state_dict()
    assert not torch.equal(*(s["embeddings.distillation_token"] for s in (before, after)))
