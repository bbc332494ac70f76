"""Checkpoints: all their weights are taken over, or it is said in one line what is wrong."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
    ViTMSNConfig,
    ViTMSNForImageClassification,
)

from fl_split.exchange.whole import joined
from fl_split.models import build
from fl_split.models.pretrained import Pretrained
from fl_split.models.resnet import ResNet18
from fl_split.testing import check_model

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}


def drawn(model):
    """Give a model weights that are all drawn, none zero or one."""
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=draw)
    return model.eval()


def vit(folder, edit=None, kind=ViTForImageClassification, **settings):
    """Save a ViT of 4 classes, and edit its config.json afterwards."""
    config = ViTConfig(**{**SMALL, "num_labels": 4, "encoder_stride": 4, **settings})
    model = drawn(kind(config))
    model.save_pretrained(folder)
    if edit:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **edit}))
    return model


def load(folder, classes=4, kind=Pretrained, **settings):
    sizes = {"image_size": 16, "channels": 3, "num_classes": classes, "seed": 0}
    return build(kind(path=str(folder), **settings), **sizes)


def pixels(size=16):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


# config.json and the weights.


def test_a_checkpoint_that_fits_is_taken_over_without_a_word(tmp_path):
    model = vit(tmp_path)
    loaded = load(tmp_path)
    assert loaded.notes == ()
    torch.testing.assert_close(loaded.module(pixels()).logits, model(pixels()).logits)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ({"patch_size": 8}, ["projection.weight", "(16, 3, 4, 4)", "(16, 3, 8, 8)"]),
        ({"patch_size": 8, "image_size": 32}, ["projection.weight", "(16, 3, 8, 8)"]),
        (
            {"intermediate_size": 64},
            ["vit.layers.0.mlp.fc1.weight", "(32, 16)", "(64, 16)", "more"],
        ),
        ({"num_channels": 1}, ["projection.weight", "(16, 3, 4, 4)", "(16, 1, 4, 4)"]),
        ({"hidden_size": 32}, ["classifier.weight", "(4, 16)", "(4, 32)"]),
        ({"num_hidden_layers": 4}, ["vit.layers.2", "is missing", "31 more"]),
        ({"qkv_bias": False}, ["q_proj.bias"]),
    ],
)
@pytest.mark.parametrize("lora", [0, 2])
def test_a_config_that_does_not_fit_is_refused_with_tensors_and_shapes(tmp_path, edit, named, lora):
    if lora:
        pytest.importorskip("peft")
    vit(tmp_path, edit)
    with pytest.raises(ValueError, match="does not fit") as error:
        load(tmp_path, lora=lora)
    assert all(part in str(error.value) for part in [*named, str(tmp_path)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ({"image_size": None}, "image_size must be a whole number above 0, got None"),
        ({"image_size": "16"}, "image_size must be a whole number above 0, got '16'"),
        ({"image_size": []}, "only square images"),
        ({"image_size": 0}, "image_size must"),
        ({"patch_size": 0}, "patch_size must"),
        ({"num_channels": "3"}, "num_channels must"),
        ({"hidden_size": None}, "makes no sense: Validation error for field 'hidden_size'"),
        ({"model_type": ["vit"]}, "of model_type"),
    ],
)
def test_a_config_of_wrong_types_is_refused_in_one_line(tmp_path, edit, named):
    vit(tmp_path, edit)
    with pytest.raises(ValueError, match=r"config\.json|model_type") as error:
        load(tmp_path)
    assert all(part in str(error.value) for part in (named, str(tmp_path)))
    assert "\n" not in str(error.value)


def test_positions_of_another_grid_are_interpolated_and_said(tmp_path):
    model = vit(tmp_path, {"image_size": 32})
    loaded = load(tmp_path)
    patches = model.vit.embeddings.position_embeddings[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    wanted = functional.interpolate(patches, size=(8, 8), mode="bicubic", antialias=True)
    found = loaded.module.vit.embeddings.position_embeddings
    torch.testing.assert_close(found[:, 1:], wanted.flatten(2).transpose(1, 2))
    assert torch.equal(found[:, :1], model.vit.embeddings.position_embeddings[:, :1])
    first, second = loaded.notes
    assert "says images of 32 pixels" in first and "16 pixels (4 x 4 patches)" in first
    assert second == "position embeddings are interpolated from 4 x 4 to 8 x 8 patches"
    others = {k: v for k, v in model.state_dict().items() if "position" not in k}
    mine = loaded.module.state_dict()
    assert all(torch.equal(value, mine[key]) for key, value in others.items())


def test_what_is_adapted_on_request_is_said(tmp_path):
    vit(tmp_path)
    notes = load(tmp_path, image_size=8, patch_size=2).notes
    assert notes == ("patches of 4 pixels become patches of 2: the kernel is folded",)
    (note,) = load(tmp_path, image_size=8).notes
    assert note.endswith("from 4 x 4 to 2 x 2 patches")


def test_layers_that_are_left_out_are_said(tmp_path):
    vit(tmp_path, {"num_hidden_layers": 2}, num_hidden_layers=4)
    (note,) = load(tmp_path).notes
    assert note == "config.json says 2 layers, the weights have 4: the last 2 are left out"


@pytest.mark.parametrize("kind", [ViTForImageClassification, ViTModel])
def test_a_new_classifier_is_said(tmp_path, kind):
    vit(tmp_path, kind=kind)
    notes = load(tmp_path, classes=7).notes
    why = "checkpoint has 4 classes, the data 7" if kind is not ViTModel else "checkpoint has none"
    assert notes[-1] == f"the classifier is drawn anew: the {why}"
    assert kind is not ViTModel or notes[:-1] == ("weights that are not used: pooler",)


def test_a_kept_classifier_of_other_classes_is_said(tmp_path):
    names = ["ant", "bee", "cat", "dog"]
    vit(tmp_path, {"id2label": dict(enumerate(names))})
    loaded = load(tmp_path)
    assert loaded.class_names == tuple(names) and loaded.notes_on(names) == ()
    (note,) = loaded.notes_on(["ant", "cat", "bee", "dog"])
    assert "2 of its 4 classes" in note and "'bee', which is 'cat'" in note
    assert load(tmp_path, classes=3).class_names == ()


def test_half_a_classifier_is_refused(tmp_path):
    vit(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    save_file({k: v for k, v in state.items() if k != "classifier.bias"}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"classifier\.bias is missing"):
        load(tmp_path)


def test_a_second_classifier_that_the_config_does_not_know_is_refused(tmp_path):
    config = transformers.DeiTConfig(**SMALL, num_labels=4)
    transformers.DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "architectures": None}))
    with pytest.raises(ValueError, match=r"has no .*cls_classifier"):
        load(tmp_path)


@pytest.mark.parametrize("edit", [{"hidden_sizes": [4, 4, 8, 8]}, {"depths": [1, 2, 2, 2]}])
def test_a_resnet_is_held_to_its_config_too(tmp_path, edit):
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 4, 4, 4], "depths": [2, 2, 2, 2]}
    config = ResNetConfig(**sizes, layer_type="basic", num_labels=4)
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    assert load(tmp_path, kind=ResNet18).notes == ()
    assert "4 classes, the data 3" in load(tmp_path, 3, ResNet18).notes[0]
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **edit}))
    with pytest.raises(ValueError, match="does not fit its weights"):
        load(tmp_path, kind=ResNet18)


# Relatives.


def relatives():
    mae = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
    mae |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
    return {
        "model": lambda: ViTModel(ViTConfig(**SMALL)),
        "mim": lambda: ViTForMaskedImageModeling(ViTConfig(**SMALL, encoder_stride=4)),
        "mae": lambda: ViTMAEForPreTraining(ViTMAEConfig(**SMALL, **mae)),
        "msn": lambda: ViTMSNForImageClassification(ViTMSNConfig(**SMALL, num_labels=4)),
    }


@pytest.mark.parametrize("name", relatives())
def test_weights_of_relatives_of_a_vit_are_taken_over(tmp_path, name):
    model = drawn(relatives()[name]())
    model.save_pretrained(tmp_path)
    module = load(tmp_path).module
    theirs = getattr(model, "vit", model).state_dict()
    mine = module.vit.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    if name == "msn":
        torch.testing.assert_close(module(pixels()).logits, model(pixels()).logits)


def dinov2(**settings):
    own = {k: v for k, v in SMALL.items() if k != "intermediate_size"}
    return drawn(Dinov2ForImageClassification(Dinov2Config(**own, num_labels=4, **settings)))


@pytest.mark.parametrize("settings", [{}, {"use_swiglu_ffn": True}])
@pytest.mark.parametrize(("cut", "end"), [(1, 0), (1, 2)])
def test_dinov2_gives_the_logits_of_transformers(tmp_path, settings, cut, end):
    model = dinov2(**settings)
    model.save_pretrained(tmp_path)
    spec = Pretrained(str(tmp_path))
    loaded = load(tmp_path)
    halves = spec.split(loaded.module.eval(), cut, end)
    wanted = model(pixels()).logits
    torch.testing.assert_close(joined(*halves, pixels()), wanted, atol=1e-5, rtol=1e-5)
    assert loaded.notes == ("weights that are not used: mask_token",)
    model.set_attn_implementation("eager")
    row = model(pixels(), output_attentions=True).attentions[0].mean(dim=1)[:, 0]
    torch.testing.assert_close(halves[0](pixels())[1](), row)


def test_dinov2_keeps_the_laws_of_models(tmp_path):
    dinov2(drop_path_rate=0.0).save_pretrained(tmp_path)
    check_model(Pretrained(str(tmp_path)))


def test_dropped_branches_are_random_layers(tmp_path):
    dinov2(drop_path_rate=0.5).save_pretrained(tmp_path)
    head, tail = Pretrained(str(tmp_path)).split(load(tmp_path).module, 1)
    assert head.has_dropout and tail.has_dropout


class TimmBlock(nn.Module):
    """The block of timm's VisionTransformer, written down from its definition."""

    def __init__(self, width, hidden, heads):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.heads = heads

    def forward(self, x):
        batch, count, width = x.shape
        qkv = self.attn.qkv(self.norm1(x)).reshape(batch, count, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        row = (q @ k.transpose(2, 3) * (width // self.heads) ** -0.5).softmax(dim=-1)
        x = x + self.attn.proj((row @ v).transpose(1, 2).reshape(batch, count, width))
        return x + self.mlp.fc2(functional.gelu(self.mlp.fc1(self.norm2(x))))


class TimmViT(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 24))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, 24))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, 24, 4, stride=4)
        self.blocks = nn.Sequential(*(TimmBlock(24, 48, 3) for _ in range(2)))
        self.norm = nn.LayerNorm(24, eps=1e-6)
        self.head = nn.Linear(24, classes)

    def forward(self, images):
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def timm(folder, model, architecture="vit_tiny_patch4_16", is_safe=True, **config):
    cfg = {"input_size": [3, 16, 16], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2]}
    cfg |= {"crop_pct": 0.875, "interpolation": "bicubic", "crop_mode": "center"}
    config = {"architecture": architecture, "num_classes": 4, "pretrained_cfg": cfg, **config}
    (folder / "config.json").write_text(json.dumps(config))
    if is_safe:
        save_file(model.state_dict(), folder / "model.safetensors")
    else:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")


@pytest.mark.parametrize("is_safe", [True, False])
def test_a_plain_vit_of_timm_gives_its_logits(tmp_path, is_safe):
    model = drawn(TimmViT())
    timm(tmp_path, model, is_safe=is_safe)
    loaded = load(tmp_path)
    torch.testing.assert_close(
        loaded.module(pixels()).logits, model(pixels()), atol=1e-5, rtol=1e-4
    )
    assert loaded.notes == ()
    assert "4 classes, the data 7" in load(tmp_path, classes=7).notes[0]
    found = Pretrained(str(tmp_path)).preprocessing()
    assert found.mean == (0.4, 0.5, 0.6) and found.std == (0.2, 0.2, 0.2)
    assert (found.resize, found.shortest) == ("shortest+crop", 18)  # floor(16 / 0.875)


def test_a_timm_vit_that_is_not_plain_is_refused(tmp_path):
    model = TimmViT()
    timm(tmp_path, model, "convnext_tiny")
    with pytest.raises(ValueError, match="timm checkpoint of architecture 'convnext_tiny'"):
        load(tmp_path)
    timm(tmp_path, model, global_pool="avg")
    with pytest.raises(ValueError, match="classifies by 'avg'"):
        load(tmp_path)
    timm(tmp_path, model, pretrained_cfg={"input_size": 224})
    with pytest.raises(
        ValueError, match=r"cannot load a ViT from .*: input_size must be .* got 224"
    ):
        load(tmp_path)
    model.norm_pre = nn.LayerNorm(24)
    timm(tmp_path, model)
    with pytest.raises(ValueError, match=r"'norm_pre\..*', which a plain ViT has not"):
        load(tmp_path)


# What cannot be used.


def others():
    sizes = {k: v for k, v in SMALL.items() if k != "intermediate_size"}
    clip = transformers.CLIPVisionConfig(**SMALL)
    return {
        "clip_vision_model": lambda: transformers.CLIPVisionModel(clip),
        "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersForImageClassification(
            transformers.Dinov2WithRegistersConfig(**sizes)
        ),
        "resnet": lambda: ResNetForImageClassification(
            ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1])
        ),
    }


@pytest.mark.parametrize("name", others())
def test_another_architecture_is_called_by_its_name(tmp_path, name):
    others()[name]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"it is a checkpoint of model_type '{name}'") as error:
        load(tmp_path)
    message = str(error.value)
    assert "takes ViT, ViT-MAE and ViT-MSN, DeiT, DINOv2 without registers" in message
    assert ("resnet18(path=...)" in message) == (name == "resnet")


def test_a_vit_is_no_resnet(tmp_path):
    vit(tmp_path)
    with pytest.raises(ValueError, match=r"it is .*'vit'.*use pretrained\(path=\.\.\.\)"):
        load(tmp_path, kind=ResNet18)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no config.json.*files found: none"),
        ({"checkpoint.pth": "x"}, "no config.json.*files found: checkpoint.pth"),
        ({"config.json": "{"}, "config.json is no JSON"),
        ({"config.json": "[]"}, "must hold a JSON object, holds list"),
        ({"config.json": '{"image_size": [16, 32]}'}, "only square images"),
        (
            {"adapter_config.json": '{"base_model_name_or_path": "org/vit"}'},
            "an adapter of 'org/vit', not a model; merge it",
        ),
        ({"config.json": '{"model_type": "vit"}'}, "no file named model.safetensors"),
    ],
)
def test_what_is_no_checkpoint_is_said(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"cannot load a ViT.*{message}"):
        load(tmp_path)


def test_a_name_that_neither_a_folder_nor_the_hub_has_is_said(monkeypatch):
    """The hub is not asked: nothing of that name was ever fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot load a ViT from 'nosuch': no such folder here, "):
        load("nosuch")
