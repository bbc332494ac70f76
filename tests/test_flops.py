"""The closed form against torch's own counter, which sees every product once un-fused."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fl_split.activations import activation_bytes, saved
from fl_split.codecs import parse_codec
from fl_split.models.cut import insert
from fl_split.models.vit import ViT, split


@pytest.mark.parametrize("codec", ["identity()", "bottlenet(ratio=0.25)", "jscc()", "semantic()"])
def test_head_and_tail_steps_equal_the_counter(codec):
    spec = ViT(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)
    model = spec.build(image_size=16, channels=3, num_classes=7, seed=0)
    model.set_attn_implementation("eager")  # fused attention counts as nothing on a CPU
    head, tail = split(model, 2)
    insert(head, tail, parse_codec(codec), 0)
    with FlopCounterMode(display=False) as counter:
        tokens = head(torch.randn(5, 3, 16, 16))[0]
        assert head.forward_flops(5) == counter.get_total_flops()
        tokens.sum().backward()
    assert head.flops(5) == counter.get_total_flops()
    leaf = torch.randn(3, 9, tail.width, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        logits = tail(leaf)
        assert tail.forward_flops(3, 9) == counter.get_total_flops()
        logits.sum().backward()
    assert tail.flops(3, 9) == counter.get_total_flops()


def test_a_vit_tiny_costs_what_the_literature_says():
    """DeiT-Tiny at 224: 1,253.6832 M multiply-adds forward."""
    spec = ViT(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, patch_size=16, image_size=224
    )
    head, tail = split(spec.build(image_size=224, channels=3, num_classes=1000, seed=0), 3)
    assert head.forward_flops(1) + tail.forward_flops(1, 197) == 2 * 1253.6832e6
    patches = 2 * 196 * 16 * 16 * 3 * 192  # whose inputs, pixels, need no gradient
    assert head.flops(1) + patches + tail.flops(1, 197) == 3 * 2 * 1253.6832e6


def test_activations_are_what_autograd_saves_without_weights():
    """x W^T, then tanh: x (5, 3) is saved for dW and the result (5, 4) for tanh; W is a weight."""
    layer, x = torch.nn.Linear(3, 4, bias=False), torch.ones(5, 3, requires_grad=True)
    with saved() as sizes:
        result = layer(x).tanh()
    assert activation_bytes(sizes, layer.parameters()) == 4 * (x.numel() + result.numel())
    assert sum(sizes.values()) == 4 * (x.numel() + result.numel() + layer.weight.numel())


def test_a_split_client_keeps_less_than_one_with_the_whole_model(simulate):
    kept = simulate(rounds=1).summary["activation_bytes"]
    assert 0 < kept["head"] < kept["whole"]
    alone = simulate(rounds=1, strategy="fedavg()").summary["activation_bytes"]
    assert alone["head"] == alone["whole"] == kept["whole"]
    twice = simulate(rounds=1, batch_size=128).summary["activation_bytes"]
    assert twice["whole"] == pytest.approx(2 * kept["whole"], rel=0.02)
