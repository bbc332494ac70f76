import copy

import pytest
import torch
from torch.nn import functional

from fl_split.codecs import Identity
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch
from fl_split.exchange.split import Split
from fl_split.flat import Flat
from fl_split.models.pretrained import Pretrained, adapt
from fl_split.models.vit import ViT, split
from fl_split.optimizers import OPTIMIZERS
from fl_split.recipe.descent import Descent
from fl_split.seeds import StepId
from fl_split.specs import parse

SMALL = ViT(hidden_size=24, num_hidden_layers=4, num_attention_heads=3, patch_size=4)


def build(spec=SMALL, image_size=8, channels=3, num_classes=5, seed=0):
    return spec.build(image_size=image_size, channels=channels, num_classes=num_classes, seed=seed)


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize(
    "optimizer", ["sgd(lr=0.1, momentum=0.9, weight_decay=0.01)", "adam(lr=0.01)", "adamw(lr=0.01)"]
)
def test_split_training_equals_monolithic_training_bit_for_bit(cut, optimizer):
    whole, halved = build(), build()
    head, tail = (Flat(half) for half in split(halved, cut))
    spec = parse(optimizer, OPTIMIZERS)
    ours = {"no_decay"}
    settings = {k: v for k, v in vars(spec).items() if not k.startswith("_") and k not in ours}
    reference = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[
        optimizer.partition("(")[0]
    ](whole.parameters(), **settings)
    own = [Descent(head, spec), Descent(tail, spec)]
    draw = torch.Generator().manual_seed(1)
    for step in range(4):
        pixels = torch.randn(6, 3, 8, 8, generator=draw)
        labels = torch.randint(5, (6,), generator=draw)
        reference.zero_grad()
        expected = functional.cross_entropy(whole(pixels).logits, labels)
        expected.backward()
        reference.step()
        batch, link = Batch(pixels, labels, 5), Link(Identity(), Identity())
        got = Split().step(head, tail, link, batch, StepId(0, 1, 0, step))
        own[0].step(got.of_head)
        own[1].step(got.of_tail)
        assert got.loss == expected.item()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, halved.state_dict()[name]), name
    assert not torch.equal(whole.classifier.weight, build().classifier.weight)


@pytest.mark.parametrize("cut", [1, 3])
def test_head_returns_what_transformers_returns(cut):
    model = build()
    head, _ = split(model, cut)
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    tokens, attention = head(pixels)
    model.set_attn_implementation("eager")
    output = model(pixels, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(tokens, output.hidden_states[cut])
    row = output.attentions[cut - 1].mean(dim=1)[:, 0]
    torch.testing.assert_close(attention(), row)
    assert not attention().requires_grad


@pytest.mark.parametrize("cut", [0, 4, -1])
def test_a_cut_outside_the_model_is_refused(cut):
    with pytest.raises(ValueError, match=r"cut must be in 1\.\.3 .* got"):
        split(build(), cut)


def test_a_folded_kernel_sees_a_patch_as_the_old_one_saw_it_enlarged():
    model = build(image_size=16, spec=ViT(hidden_size=24, num_attention_heads=3, patch_size=8))
    adapted = adapt(copy.deepcopy(model), image_size=12, patch_size=4)
    patch = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    large = functional.interpolate(patch, size=(8, 8), mode="bicubic")
    old, new = (m.vit.embeddings.patch_embeddings.projection for m in (model, adapted))
    torch.testing.assert_close(new(patch), old(large), atol=1e-5, rtol=1e-5)
    assert adapted.vit.embeddings.position_embeddings.shape == (1, 1 + 9, 24)
    assert adapted(torch.zeros(1, 3, 12, 12)).logits.shape == (1, 5)


def test_a_constant_position_grid_stays_constant_when_interpolated():
    model = build(image_size=16)
    positions = model.vit.embeddings.position_embeddings
    positions.data[:, 1:] = torch.arange(24.0)
    positions.data[:, 0] = -1
    resized = adapt(model, image_size=8, patch_size=4).vit.embeddings.position_embeddings
    torch.testing.assert_close(resized[0, 1:], torch.arange(24.0).expand(4, 24))
    assert (resized[0, 0] == -1).all()


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = build(seed=3).classifier.weight
    torch.manual_seed(2)
    assert torch.equal(first, build(seed=3).classifier.weight)
    assert not torch.equal(first, build(seed=4).classifier.weight)


def test_dropout_in_the_head_is_repeatable():
    model = build(spec=ViT(hidden_size=24, num_attention_heads=3, hidden_dropout_prob=0.5))
    head, _ = split(model, 2)
    batch = Batch(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), 5)
    first, again, other = (
        Split().smash(head, Identity(), batch, StepId(0, 1, 2, step), {}).carried["tokens"]
        for step in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_checkpoint_comes_back_with_a_new_classifier(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    loaded = Pretrained(path=str(tmp_path)).build(image_size=99, channels=9, num_classes=7, seed=0)
    assert loaded.classifier.weight.shape == (7, 24)
    assert torch.equal(loaded.vit.layers[0].mlp.fc1.weight, model.vit.layers[0].mlp.fc1.weight)
    with pytest.raises(ValueError, match="cannot load a ViT"):
        Pretrained(path=str(tmp_path / "nothing")).build(
            image_size=8, channels=3, num_classes=7, seed=0
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_checkpoint_is_trained_in_fp32(tmp_path, dtype):
    build().to(dtype).save_pretrained(tmp_path)
    sizes = {"image_size": 8, "channels": 3, "num_classes": 5, "seed": 0}
    loaded = Pretrained(path=str(tmp_path)).build(**sizes)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_what_is_no_vit_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {"image_size": 8, "channels": 3, "num_classes": 5, "seed": 0}
    config = BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot load a ViT|holds no ViT"):
        Pretrained(path=str(tmp_path)).build(**sizes)
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="cannot load a ViT"):
        Pretrained(path=str(tmp_path)).build(**sizes)
