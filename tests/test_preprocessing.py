"""What is read of a preprocessor_config.json makes the pixels that transformers makes."""

import io
import json
import re

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from fl_split.models.preprocessing import Preprocessing
from fl_split.models.pretrained import Pretrained
from fl_split.models.resnet import ResNet18
from simulations.data.decoding import Wishes, decide, look_at
from simulations.data.descriptions import Digits
from simulations.data.pictures import Transform
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import silent, view
from simulations.runs.setup import prepare

BASE = {
    "image_processor_type": "ViTImageProcessor",
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"height": 16, "width": 16},
}


def folder(path, side=16, settings=None, kind="vit", **edit):
    """Make a checkpoint without weights, which preprocessing does not need."""
    config = {"model_type": kind, "num_channels": 3}
    (path / "config.json").write_text(json.dumps({**config, "image_size": side}))
    text = json.dumps({**(BASE if settings is None else settings), **edit})
    (path / "preprocessor_config.json").write_text(text)
    return str(path)


def read(path, side=16, settings=None, image_size=0, **edit):
    path = folder(path, side, settings, **edit)
    return Pretrained(path, image_size=image_size).preprocessing()


def photo():
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (6, 9, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((45, 30), Image.Resampling.BICUBIC)


def carried_out(found, image, size):
    """Do to an image what `found` says, independently of the program."""
    way = Image.Resampling[found.interpolation.upper()]
    side = found.shortest or size
    if found.resize == "squash":
        image = image.resize((side, side), way)
    else:
        width, height = image.size
        short = min(width, height)
        image = image.resize((int(side * width / short), int(side * height / short)), way)
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image).astype(np.float64) / 255
    return ((pixels - found.mean) / found.std).transpose(2, 0, 1)


PROCESSORS = {
    "ViT": ({}, 224),
    "ViT, nearest": ({"resample": 0, "size": {"height": 20, "width": 20}}, 20),
    "ViT, as one number": ({"size": 20, "image_mean": 0.3, "image_std": 0.2}, 20),
    "DeiT": ({}, 224),
    "DeiT, lanczos": (
        {"resample": 1, "size": {"height": 25, "width": 25}, "crop_size": 20},
        20,
    ),
    "CLIP": ({}, 224),
    "CLIP, small": ({"size": {"shortest_edge": 24}, "crop_size": {"height": 20, "width": 20}}, 20),
    "Bit": ({"size": {"shortest_edge": 25}, "crop_size": 20}, 20),
    "ConvNext": ({"size": {"shortest_edge": 21}, "crop_pct": 0.875}, 21),
    "ConvNext, large": ({"size": {"shortest_edge": 384}}, 384),
    "ViT, not rescaled": ({"size": 20, "do_rescale": False}, 20),
    "ViT, not normalised": ({"size": 20, "do_normalize": False}, 20),
    "ViT, neither": ({"size": 20, "do_rescale": False, "do_normalize": False}, 20),
    "ViT, to -1 and 1": ({"size": 20, "rescale_factor": 1 / 127.5, "do_normalize": False}, 20),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_those_of_the_processor(tmp_path, name):
    settings, size = PROCESSORS[name]
    kind = name.partition(",")[0]
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**settings)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    for given in ({**settings, "image_processor_type": f"{kind}ImageProcessor"}, saved):
        found = read(tmp_path, size, given)
        assert found.notes == ()
        wanted = processor(photo(), return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(carried_out(found, photo(), size), wanted, atol=2e-5)
        transform = Transform(size, 3, found.resize, found.shortest, found.interpolation)
        stored = io.BytesIO()
        photo().save(stored, "PNG")
        ours = transform.apply(stored.getvalue()) / 255
        mean, std = (np.reshape(part, (-1, 1, 1)) for part in (found.mean, found.std))
        np.testing.assert_allclose((ours - mean) / std, wanted, atol=2e-5)


def test_what_is_usual_is_taken_as_it_stands(tmp_path):
    found = read(tmp_path)
    assert found.mean == (0.485, 0.456, 0.406) and found.std == (0.229, 0.224, 0.225)
    assert (found.resize, found.shortest, found.interpolation) == ("squash", 0, "bilinear")
    one = read(tmp_path, image_mean=0.5, image_std=0.25)
    assert (one.mean, one.std) == ((0.5,), (0.25,))


def test_rescaling_becomes_part_of_mean_and_deviation(tmp_path):
    """Of p in [0, 1]: (510 p - 1) / 2 = (p - 1/510) / (2/510); the same of 255 p."""
    found = read(tmp_path, rescale_factor=2, image_mean=1, image_std=2)
    assert found.mean == pytest.approx((1 / 510,)) and found.std == pytest.approx((2 / 510,))
    found = read(tmp_path, do_rescale=False, image_mean=1, image_std=2)
    assert found.mean == pytest.approx((1 / 255,)) and found.std == pytest.approx((2 / 255,))


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        ({"image_mean": None}, "image_mean must be a number"),
        ({"image_mean": "0.5"}, "image_mean must be a number or a list of numbers, got '0.5'"),
        ({"image_mean": []}, "image_mean must"),
        ({"image_mean": [0.5, None, 0.5]}, "image_mean must"),
        ({"image_mean": [True] * 3}, "image_mean must"),
        ({"image_std": [0, 0, 0]}, "image_std must be above 0"),
        ({"image_std": [0.2, -1, 0.2]}, "image_std must be above 0"),
        ({"image_std": [float("nan")] * 3}, "image_std must"),
        ({"image_mean": [0.5, 0.5]}, "image_mean has 2 numbers, the model's images 3 channels"),
        ({"rescale_factor": 0}, "rescale_factor must be a number above 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor must be a number above 0"),
        ({"rescale_factor": None}, "rescale_factor must be a number above 0"),
        ({"do_normalize": "yes"}, "do_normalize must be true or false, got 'yes'"),
        ({"resample": 9}, "resample must be a filter of Pillow, 0 to 5, got 9"),
        ({"resample": "bicubic"}, "resample must be a filter of Pillow"),
        ({"size": "224"}, "size must be whole numbers of pixels"),
        ({"size": {"height": 0, "width": 0}}, "size must be whole numbers of pixels"),
        ({"size": {"height": 16.5, "width": 16}}, "size must be whole numbers of pixels"),
        ({"do_center_crop": True, "crop_size": [1, 2, 3]}, "crop_size must be whole numbers"),
        ({"crop_pct": 3}, "crop_pct must be above 0 and at most 1"),
    ],
)
def test_nonsense_is_an_error_that_names_file_and_key(tmp_path, edit, key):
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: ") as error:
        read(tmp_path, **edit)
    assert key in str(error.value) and "\n" not in str(error.value)


def test_a_torn_file_is_an_error(tmp_path):
    path = folder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.4')
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is no JSON"):
        Pretrained(path).preprocessing()


def test_no_file_and_none_of_a_mean_are_said_or_honoured(tmp_path):
    off = read(tmp_path, image_mean=None, image_std=None, do_normalize=False)
    assert (off.mean, off.std, off.notes) == ((0.0,), (1.0,), ())
    (tmp_path / "preprocessor_config.json").unlink()
    found = Pretrained(str(tmp_path)).preprocessing()
    assert (found.mean, found.std, found.resize) == ((0.5,), (0.5,), "")
    assert "no preprocessor_config.json" in found.notes[0]


@pytest.mark.parametrize(
    ("edit", "note"),
    [
        ({"do_resize": False}, "do_resize is false"),
        ({"do_pad": True}, "do_pad is not honoured"),
        ({"size": {"height": 16, "width": 24}}, "size is 16 x 24, but the model takes squares"),
        ({"size": {"longest_edge": 16}}, "size by longest_edge 16 is not honoured"),
        ({"size": {"shortest_edge": 16}}, "do_center_crop is false"),
        ({"size": 24}, "makes images of 24 pixels, config.json says 16: the model gets 16"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order=True is not honoured"),
        ({"image_processor_type": "MyProcessor"}, "'MyProcessor' is not known"),
        ({"do_center_crop": True, "crop_size": 20}, "crop_size 20 is more than size 16"),
    ],
)
def test_what_is_not_honoured_is_said(tmp_path, edit, note):
    assert any(note in text for text in read(tmp_path, **edit).notes)


def timm(path, **settings):
    """Make the config.json of a plain ViT of timm for 16 pixels, which is all that is read."""
    own = {"mean": [0.4, 0.5, 0.6], "std": [0.2] * 3, **settings}
    config = {"architecture": "vit_tiny_patch4_16", "pretrained_cfg": own}
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


@pytest.mark.parametrize(
    "size", [224, [3, None, None], [3, 224], ["3", 16, 16], [3, 0, 0], [3, 16, 24], {}, "224"]
)
def test_an_input_size_of_timm_that_makes_no_sense_is_an_error(tmp_path, size):
    path = timm(tmp_path, input_size=size)
    with pytest.raises(ValueError, match=r"config\.json: input_size must be channels, height") as e:
        Pretrained(path).preprocessing()
    assert str(e.value).endswith(f"got {size!r}") and "\n" not in str(e.value)


def test_without_an_input_size_timms_architecture_says_it(tmp_path):
    """16 pixels: to floor(16 / 0.8) = 20; for 32 to 40."""
    path = timm(tmp_path, crop_pct=0.8)
    assert Pretrained(path).preprocessing().shortest == 20
    assert Pretrained(path, image_size=32).preprocessing().shortest == 40
    found = Pretrained(timm(tmp_path, crop_mode=["center"])).preprocessing()
    assert "crop_mode=['center'], crop_pct=0.875 are not honoured" in found.notes[0]


def test_old_names_of_processors_are_known(tmp_path):
    """A feature extractor of CLIP cuts 224 of 224 pixels."""
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224}
    found = read(tmp_path, 224, old)
    assert (found.resize, found.shortest) == ("shortest+crop", 224)
    assert found.interpolation == "bicubic" and found.notes == ()


def test_a_cut_is_scaled_to_the_size_that_the_model_gets(tmp_path):
    """224 of 256 pixels, for a model of 32: of 256 / 224 x 32 = 36.57."""
    deit = {"image_processor_type": "DeiTImageProcessor"}
    found = read(tmp_path, 224, deit, image_size=32)
    assert (found.resize, found.shortest, found.notes) == ("squash", 37, ())


def test_a_resnet_without_a_size_keeps_that_of_the_data_and_says_so(tmp_path):
    settings = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}
    path = folder(tmp_path, settings=settings, kind="resnet")
    found = ResNet18(path=path).preprocessing()
    assert found.resize == "" and "image_size=224" in found.notes[0]
    sized = ResNet18(path=path, image_size=224).preprocessing()
    assert (sized.resize, sized.shortest, sized.notes) == ("shortest+crop", 256, ())


def checkpoint(path, channels=3, side=8, **settings):
    """Save a tiny ViT whose images have `side` pixels; return its spec."""
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        image_size=side, patch_size=4, num_channels=channels, num_labels=10,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return f"pretrained(path={str(path)!r})"


def prepared(model, **keys):
    return prepare(Experiment.from_dict({"model": model, "cut": 1, "clients": 2, **keys}))


def said(decisions, about):
    return " | ".join(one.text for one in decisions if one.about == about)


def test_a_checkpoint_adapts_to_the_size_that_is_asked_for(tmp_path):
    model = checkpoint(tmp_path, size=8)
    setup = prepared(model, image_size=16)
    assert setup.train.pixels.shape[1:] == setup.head.image_shape == (3, 16, 16)
    assert said(setup.decisions, "size").startswith("16x16; the images are 8x8 (1,797)")
    assert "interpolated from 2 x 2 to 4 x 4 patches" in said(setup.decisions, "model")
    assert prepared(model).head.image_shape == (3, 8, 8)


def test_a_size_or_channels_that_the_model_does_not_take_are_refused(tmp_path):
    model = checkpoint(tmp_path, size=8)
    with pytest.raises(ValueError, match=r"channels=1, but pretrained\(.* takes 3: leave channels"):
        prepared(model, channels=1)
    with pytest.raises(ValueError, match=r"image_size=16, but .* takes 8: leave image_size out"):
        prepared(model.replace(")", ", image_size=8)"), image_size=16)
    with pytest.raises(ValueError, match=r"image_size=16, but .* takes 8: leave image_size out"):
        prepared("vit(patch_size=4, image_size=8)", image_size=16)
    assert "3 (colour), as the model takes" in said(prepared(model).decisions, "channels")


def test_a_margin_that_is_cut_off_is_said_though_the_images_have_the_size(tmp_path):
    """To 10 pixels, of which 8 are left."""
    clip = {"image_processor_type": "CLIPImageProcessor", "size": 10, "crop_size": 8}
    setup = prepared(checkpoint(tmp_path, **clip))
    assert said(setup.decisions, "size") == (
        "8x8; the images are 8x8 (1,797): 1,797 are resized (shortest+crop: to 10, of which the "
        "middle 8 are cut out)"
    )


@pytest.mark.parametrize(
    ("keys", "margins"),
    [
        ({}, (10, 10)),
        ({"test_resize": "shortest+crop"}, (10, 10)),
        ({"resize": "pad"}, (0, 0)),
        ({"resize": "pad", "test_resize": "shortest+crop"}, (0, 10)),
        ({"test_resize": "pad"}, (10, 0)),
    ],
)
def test_the_checkpoints_own_way_keeps_its_margin(keys, margins):
    looked = look_at(Digits().open(0.2, 0), "error", silent)
    model = Preprocessing(resize="shortest+crop", shortest=10)
    wishes = Wishes(keys.get("resize", ""), keys.get("test_resize", ""))
    train, test, _ = decide(looked, wishes, 8, 1, model)
    assert (train.shortest, test.shortest) == margins


def test_a_look_at_data_shows_what_the_model_takes(tmp_path):
    clip = {"image_processor_type": "CLIPImageProcessor", "size": 10, "crop_size": 8}
    model = checkpoint(tmp_path, **clip)
    seen = view(Experiment.from_dict({"model": model, "cut": 1}))
    setup = prepared(model)
    assert [one for one in setup.decisions if one.about != "cache"] == seen.decisions
    pictures, _ = seen.pictures()
    assert pictures.shape[1:] == (3, 8, 8)
    assert np.array_equal(pictures[0], setup.train.pixels[:1][0])
    with pytest.raises(ValueError, match="channels=1, but pretrained"):
        view(Experiment.from_dict({"model": model, "cut": 1, "channels": 1}))


def test_a_look_at_data_builds_no_model_that_was_not_named(monkeypatch):
    monkeypatch.setattr("simulations.runs.experiment_data.built", None)
    assert view(Experiment.from_dict({"image_size": 12})).transform.size == 12


FACTOR = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "size": 8}


@pytest.mark.parametrize(
    ("settings", "origin", "filter_"),
    [
        (None, "the default", "bicubic"),
        ({**FACTOR, "resample": 2}, "as preprocessor_config.json says", "bilinear"),
        ({**FACTOR, "rescale_factor": 1 / 127.5, "image_mean": 1, "image_std": 1},
         "as preprocessor_config.json, its rescaling included, says", "bilinear"),
    ],
)  # fmt: skip
def test_how_pixels_are_normalised_is_said_with_the_numbers_that_are_used(
    tmp_path, settings, origin, filter_
):
    plain = "vit(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, patch_size=4)"
    model = plain if settings is None else checkpoint(tmp_path, **settings)
    setup = prepared(model)
    text = said(setup.decisions, "pixels")
    scale = r"from 0 to 1, less mean (.*), divided by deviation (.*); "
    found = re.fullmatch(scale + r"filter of resizing: (\w+) \((.*)\)", text)
    mean, std = (np.array(found[k].split(", "), dtype=float).reshape(-1, 1, 1) for k in (1, 2))
    assert (found[3], found[4]) == (filter_, origin)
    pixels, _ = setup.train.batch(slice(0, 3))
    wanted = (setup.train.pixels[:3] / 255 - mean) / std
    np.testing.assert_allclose(pixels.numpy(), wanted, atol=0.005)
    assert setup.decisions[[one.about for one in setup.decisions].index("pixels")].key == "model"


def test_pixels_of_a_run_are_those_settings(tmp_path):
    own = {"do_rescale": False, "do_normalize": False, "size": 8}
    setup = prepared(checkpoint(tmp_path, 1, **own))
    pixels, _ = setup.test.batch(slice(0, 3))
    wanted = torch.from_numpy(setup.test.pixels[:3].astype(np.float32))
    torch.testing.assert_close(pixels, wanted, atol=1e-3, rtol=1e-5)
