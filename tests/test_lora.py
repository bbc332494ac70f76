"""Adapters: what is trained, what travels, what is left in the end."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTForImageClassification

from fl_split.flat import Flat, copy_trained, trained
from fl_split.models.lora import merged
from fl_split.models.pretrained import Pretrained
from fl_split.models.vit import ViT, split
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies import STRATEGIES

pytest.importorskip("peft")

SIZES = {"image_size": 8, "channels": 1, "num_classes": 10}
RANK = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return the folder of a small checkpoint."""
    folder = tmp_path_factory.mktemp("base")
    spec = ViT(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)
    spec.build(**SIZES, seed=3).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def adapted(base):
    return {"model": f"pretrained(path={base!r}, lora={RANK})", "rounds": 2, "local_steps": 2}


def build(base, lora=RANK):
    return Pretrained(path=base, lora=lora).build(**SIZES, seed=0)


def pixels(count=3):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_adapters_change_nothing_before_training(base):
    assert torch.equal(build(base)(pixels()).logits, build(base, lora=0)(pixels()).logits)


def test_only_adapters_and_classifier_are_trained(base):
    head, tail = split(build(base), 1)
    block = 2 * (RANK * 16 + 16 * RANK)  # A and B, of queries and values
    assert Flat(head).vector.numel() == block
    assert Flat(tail).vector.numel() == 2 * block + 16 * 10 + 10
    assert torch.equal(
        build(base).vit.layers[0].mlp.fc1.weight, build(base, 0).vit.layers[0].mlp.fc1.weight
    )


def test_copies_share_what_is_frozen(base):
    head, _ = split(build(base), 1)
    other = copy_trained(head)
    theirs = dict(other.named_parameters())
    for name, parameter in head.named_parameters():
        assert (theirs[name] is parameter) != parameter.requires_grad
    Flat(other).vector.data.fill_(1.0)
    assert not all((p == 1.0).all() for p in trained(head))


@pytest.mark.parametrize("cut", [1, 2])
def test_flops_equal_the_counter(base, cut):
    model = build(base)
    model.set_attn_implementation("eager")
    head, tail = split(model, cut)
    with FlopCounterMode(display=False) as counter:
        tokens = head(pixels(5))[0]
        assert head.forward_flops(5) == counter.get_total_flops()
        tokens.sum().backward()
    assert head.flops(5) == counter.get_total_flops()
    leaf = torch.randn(3, 5, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output = tail(leaf)
        assert tail.forward_flops(3, 5) == counter.get_total_flops()
        output.sum().backward()
    assert tail.flops(3, 5) == counter.get_total_flops()


def test_the_merged_model_gives_the_same_answers(base):
    model = build(base)
    for parameter in trained(model):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    plain = merged(model)
    assert plain.state_dict().keys() == build(base, lora=0).state_dict().keys()
    torch.testing.assert_close(plain(pixels()).logits, model(pixels()).logits)
    assert not torch.allclose(plain(pixels()).logits, build(base, 0)(pixels()).logits)
    without = build(base, lora=0)
    assert merged(without) is without


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_trains_adapters_alone(simulate, adapted, base, name):
    codec = "fp16()" if name == "sglr" else "adc(ratio=0.3)"
    outcome = simulate(**adapted, strategy=name, codec=codec)
    assert (outcome.clients["dropped"] == "").all()
    before, after = build(base, lora=0).state_dict(), outcome.model
    for key, value in before.items():
        is_adapted = any(part in key for part in ("q_proj.weight", "v_proj.weight", "classifier"))
        assert torch.equal(value, after[key]) != is_adapted, key
    ViTForImageClassification.from_pretrained(outcome.folder)


def test_only_adapters_travel_and_count(simulate, adapted):
    bare, full = (
        simulate(**adapted),
        simulate(**{**adapted, "model": adapted["model"].replace(f"lora={RANK}", "lora=0")}),
    )
    setup = prepare(Experiment.from_dict(bare.summary["experiment"]))
    sent = 4 * sum(p.numel() for p in trained(setup.head))
    assert sent == 4 * 2 * 2 * (RANK * 16)  # the head's one block
    clients = bare.rounds["clients"][0]
    overhead = bare.rounds["head_bytes_up"][0] - clients * sent
    assert overhead == full.rounds["head_bytes_up"][0] - clients * 4 * sum(
        p.numel() for p in setup.head.parameters() if not p.requires_grad
    )
    assert bare.rounds["client_flops"][0] < full.rounds["client_flops"][0]


def test_the_same_seed_trains_the_same_adapters(simulate, adapted):
    assert simulate(**adapted).equals(simulate(**adapted))


@pytest.mark.parametrize("optimizer", ["sgd(lr=0.05, momentum=0.9)", "adam(lr=0.01)"])
def test_sflv1_equals_fedavg_exactly(simulate, adapted, optimizer):
    values = {**adapted, "head_optimizer": optimizer, "tail_optimizer": optimizer}
    assert simulate(**values, strategy="sflv1").equals(simulate(**values, strategy="fedavg"))


@pytest.mark.slow
def test_ray_gives_the_bits_of_inline(simulate, on_ray, adapted):
    assert simulate(**adapted).equals(on_ray(**adapted))
