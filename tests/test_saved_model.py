"""The saved model: every version of transformers finds each of its tensors."""

import io
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageClassification

from fl_split.exchange.whole import joined
from fl_split.models.lora import merged
from fl_split.models.preprocessing import Preprocessing
from fl_split.models.pretrained import Pretrained
from fl_split.models.processor import read, to_file
from fl_split.models.resnet import ResNet18
from fl_split.models.vit import ViT
from simulations.data.pictures import Transform
from simulations.runs.saved_model import tensors

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
SIZES = {"image_size": 8, "channels": 1, "num_classes": 10, "seed": 0}

IN_BLOCK = [
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
]
VIT = [
    *IN_BLOCK,
    "intermediate.dense",
    "output.dense",
    "layernorm_before",
    "layernorm_after",
]
DINOV2 = [*IN_BLOCK, "mlp.fc1", "mlp.fc2", "norm1", "norm2"]


def names(prefix, in_block, *others):
    """Names of tensors as transformers 4.57 has them."""
    modules = [f"{prefix}.encoder.layer.{n}.{part}" for n in range(2) for part in in_block]
    modules += [f"{prefix}.embeddings.patch_embeddings.projection", f"{prefix}.layernorm"]
    tokens = [f"{prefix}.embeddings.{part}" for part in ("cls_token", "position_embeddings")]
    found = {f"{module}.{last}" for module in modules for last in ("weight", "bias")}
    return found | {*tokens, *others}


ONE = "classifier.weight", "classifier.bias"
TWO = [f"{part}_{name}" for part in ("cls", "distillation") for name in ONE]
DEIT = "deit.embeddings.distillation_token"
SCALES = [
    f"dinov2.encoder.layer.{n}.layer_scale{which}.lambda1" for n in range(2) for which in (1, 2)
]
KINDS = {
    "ViTForImageClassification": ("ViT", names("vit", VIT, *ONE)),
    "ViTModel": ("ViT", names("vit", VIT, *ONE)),
    "DeiTForImageClassification": ("DeiT", names("deit", VIT, DEIT, *ONE)),
    "DeiTForImageClassificationWithTeacher": ("DeiT", names("deit", VIT, DEIT, *TWO)),
    "Dinov2ForImageClassification": ("Dinov2", names("dinov2", DINOV2, *SCALES, *ONE)),
}
NOTES = {
    "ViTModel": [
        "weights that are not used: pooler",
        "the classifier is drawn anew: the checkpoint has none",
    ],
    "Dinov2ForImageClassification": ["weights that are not used: mask_token"],
}
"""What must be said of each."""


def checkpoint(folder, kind):
    family, wanted = KINDS[kind]
    config = getattr(transformers, f"{family}Config")(**SMALL, num_channels=1, num_labels=10)
    getattr(transformers, kind)(config).save_pretrained(folder)
    return wanted


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_have_the_names_of_transformers_4(tmp_path, kind):
    wanted = checkpoint(tmp_path, kind)
    assert tensors(Pretrained(str(tmp_path)).build(**SIZES), True).keys() == wanted


def test_so_they_have_from_scratch_and_after_an_older_run_of_ours(tmp_path):
    wanted = names("vit", VIT, *ONE)
    model = ViT(hidden_size=16, num_hidden_layers=2, num_attention_heads=2).build(**SIZES)
    assert tensors(model, True).keys() == wanted
    model.save_pretrained(tmp_path, save_original_format=False)  # names of transformers 5
    assert tensors(Pretrained(str(tmp_path)).build(**SIZES), True).keys() == wanted


def test_adapters_are_merged_under_the_same_names(tmp_path):
    pytest.importorskip("peft")
    wanted = checkpoint(tmp_path, "ViTForImageClassification")
    model = merged(Pretrained(str(tmp_path), lora=2).build(**SIZES))
    assert tensors(model, True).keys() == wanted


def test_a_resnet_has_all_that_transformers_asks_for():
    model = ResNet18(width=4).build(**SIZES)
    theirs = transformers.ResNetForImageClassification(model.config).state_dict()
    assert tensors(model, True).keys() == theirs.keys()


@pytest.mark.parametrize("kind", [*KINDS, "scratch", "resnet"])
def test_transformers_5_loads_what_a_run_leaves(simulate, tmp_path, kind):
    model = {"scratch": "vit(patch_size=4)", "resnet": "resnet18(width=4)"}.get(kind)
    if kind in KINDS:
        checkpoint(tmp_path / "base", kind)
        model = f"pretrained(path={str(tmp_path / 'base')!r})"
    outcome = simulate(model=model, rounds=1, local_steps=1)
    theirs, found = AutoModelForImageClassification.from_pretrained(
        outcome.folder, output_loading_info=True
    )
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    wanted = "ViTForImageClassification" if kind in ("ViTModel", "scratch") else kind
    wanted = "ResNetForImageClassification" if kind == "resnet" else wanted
    assert type(theirs).__name__ == wanted == theirs.config.architectures[0]
    if kind in KINDS:
        spec = Pretrained(str(outcome.folder))
        pixels = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        halves = spec.split(spec.build(**SIZES), 1)
        torch.testing.assert_close(joined(*halves, pixels), theirs(pixels).logits)
    assert outcome.summary["model_notes"] == NOTES.get(kind, [])


@pytest.mark.parametrize(
    ("resize", "interpolation", "shortest"),
    [("squash", "bicubic", 0), ("shortest+crop", "bilinear", 0), ("shortest+crop", "lanczos", 40),
     ("squash", "nearest", 40)],
)  # fmt: skip
def test_the_processor_of_a_saved_model_is_read_back_and_does_what_was_done(
    tmp_path, resize, interpolation, shortest
):
    """By our reader, and by transformers on an image of 60 x 48 pixels."""
    done = Preprocessing((0.2, 0.3, 0.4), (0.5, 0.6, 0.7), resize, shortest, interpolation)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(to_file(done, 32)))
    found = read(str(tmp_path), 3, 32, 32)
    assert (found.mean, found.std) == (done.mean, done.std)
    assert (found.resize, found.interpolation) == (resize, interpolation) and not found.notes
    assert (found.shortest or 32) == (shortest or 32)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    ours = Transform(32, 3, resize, shortest, interpolation).apply(file.getvalue()) / 255
    ours = (ours - np.reshape(done.mean, (3, 1, 1))) / np.reshape(done.std, (3, 1, 1))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    given = theirs(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    assert given.shape == (3, 32, 32)
    assert float(np.abs(given - ours).mean()) < 0.02


def test_a_run_leaves_the_processor_of_its_model(simulate):
    folder = simulate(rounds=1, clients=2).folder
    found = read(str(folder), 1, 8, 8)
    assert (found.mean, found.std, found.resize) == ((0.5,), (0.5,), "squash")
