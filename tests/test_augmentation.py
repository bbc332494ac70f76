"""What clients do to their images, and what becomes of labels that are mixed."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fl_split.codecs import CODECS, Mixed, Smashed, parse_codec
from fl_split.exchange.link import Link
from fl_split.exchange.mixing import mix
from fl_split.exchange.protocol import Batch
from fl_split.exchange.split import encode
from fl_split.models.cut import insert
from fl_split.models.vit import ViT, split
from fl_split.payload import Payload
from fl_split.seeds import StepId, global_state
from simulations.data.augmentation import AUGMENTATIONS, augmented, parse_augment
from simulations.data.samples import Samples
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare

AT = StepId(3, 1, 2, 4)
CHANGING = sorted(set(AUGMENTATIONS) - {"none"})


def batch(channels=3, count=6, side=8):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, channels, side, side, generator=draw)
    return Batch(pixels, torch.arange(count) % 4, 4)


def made(spec, given, at=AT):
    return augmented(given, parse_augment(spec), at)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CHANGING)
def test_an_augmentation_depends_on_the_step_alone(name, channels):
    given, before = batch(channels), global_state()
    first = made(f"{name}()", given)
    assert global_state() == before
    torch.rand(5)  # whoever draws in between changes nothing
    assert torch.equal(first.pixels, made(f"{name}()", given).pixels)
    steps = [made(f"{name}()", given, StepId(3, 1, 2, step)).pixels for step in range(12)]
    assert any(not torch.equal(one, first.pixels) for one in steps)
    assert torch.equal(given.pixels, batch(channels).pixels), "the data must stay as they are"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CHANGING)
def test_images_keep_their_shape_and_range(name, channels):
    for step in range(8):
        found = made(f"{name}()", batch(channels), StepId(0, 1, 0, step))
        assert found.pixels.shape == (6, channels, 8, 8)
        assert found.pixels.dtype == torch.float32
        assert float(found.pixels.min()) >= -1e-6
        assert float(found.pixels.max()) <= 1 + 1e-6
        assert torch.equal(found.labels, batch().labels)
        assert (found.mixed is not None) is (name in {"mixup", "cutmix"})


def test_a_flip_mirrors_left_and_right():
    given = batch()
    torch.testing.assert_close(made("flip(p=1.0)", given).pixels, given.pixels.flip(3))
    torch.testing.assert_close(made("flip(p=0.0)", given).pixels, given.pixels)


def test_a_crop_is_a_window_of_the_padded_image():
    given = batch()
    found = made("crop(padding=2)", given).pixels
    padded = functional.pad(given.pixels, (2, 2, 2, 2))
    shifts = set()
    for image, whole in zip(found, padded, strict=True):
        places = [(y, x) for y in range(5) for x in range(5)]
        fits = [(y, x) for y, x in places if torch.allclose(whole[:, y : y + 8, x : x + 8], image)]
        assert len(fits) == 1
        shifts.add(fits[0])
    assert len(shifts) > 1, "each image is shifted by itself"


def test_mixup_blends_images_and_labels_alike():
    given = batch()
    found = made("mixup(alpha=1.0)", given)
    assert 0 < found.mixed.share < 1
    partners = [
        next(
            other
            for other in range(6)
            if torch.allclose(
                found.mixed.share * given.pixels[own]
                + (1 - found.mixed.share) * given.pixels[other],
                found.pixels[own],
                atol=1e-6,
            )
        )
        for own in range(6)
    ]
    assert sorted(partners) == [*range(6)]
    assert torch.equal(found.mixed.labels, given.labels[partners])


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels():
    given, seen = batch(side=16), set()
    for step in range(10):
        found = made("cutmix()", given, StepId(0, 1, 0, step))
        own = (found.pixels == given.pixels).all(dim=1)  # (B, H, W)
        kept = own.float().mean(dim=(1, 2))
        if float(kept.min()) == 1:
            continue
        for number in range(6):
            rows, columns = (torch.nonzero((~own[number]).any(dim=d)).flatten() for d in (1, 0))
            if len(rows):  # else it is its own partner
                area = len(rows) * len(columns) / 256
                assert found.mixed.share == pytest.approx(1 - area, abs=1e-6)
                seen.add(area)
    assert len(seen) > 3


@pytest.mark.parametrize("spec", sorted(f"{name}()" for name in CODECS))
def test_mixed_labels_arrive_through_every_codec_that_keeps_samples(spec):
    """The formula of mixup on one-hot labels; whoever merges samples says that it does."""
    try:
        codec = parse_codec(spec)
    except ValueError:
        codec = parse_codec(spec.replace("()", "(ratio=0.25)"))
    model = ViT(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)
    head, tail = split(model.build(image_size=8, channels=1, num_classes=4, seed=0), 1)
    insert(head, tail, codec, 0)
    labels, others = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 1, 0, 2, 3, 0])
    tokens, attention = head(torch.rand(6, 1, 8, 8))
    smashed = Smashed(tokens, attention, labels, 4, mixed=Mixed(others, 0.75))
    payload = encode(codec, smashed, AT)
    link = Link(codec, parse_codec("identity()"))
    if not codec.keeps_samples:
        with pytest.raises(ValueError, match="mixed labels"):
            link.arrive(link.up(payload, AT), AT, tail)
        return
    received = link.arrive(link.up(payload, AT), AT, tail).received
    wanted = torch.tensor(
        [[0.75, 0.25, 0, 0], [0, 1, 0, 0], [0.25, 0, 0.75, 0], [0, 0, 0.25, 0.75],
         [0.75, 0, 0, 0.25], [0.25, 0.75, 0, 0]]
    )  # fmt: skip
    torch.testing.assert_close(received.targets, wanted)


def test_mixed_labels_cost_what_they_weigh():
    """Two bits for each other label of four classes, one fp32 share."""
    head, _ = split(
        ViT(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4).build(
            image_size=8, channels=1, num_classes=4, seed=0
        ),
        1,
    )
    tokens, attention = head(torch.rand(6, 1, 8, 8))
    labels = torch.arange(6) % 4
    plain = Smashed(tokens, attention, labels, 4)
    mixed = Smashed(tokens, attention, labels, 4, mixed=Mixed(labels, 0.5))
    codec = parse_codec("identity()")
    sizes = [len(encode(codec, one, AT).to_bytes()) for one in (plain, mixed)]
    side = {"mixed-labels": labels, "mixed-share": torch.tensor([0.5])}
    empty, full = len(Payload({}, {}).to_bytes()), len(Payload({}, side).to_bytes())
    assert sizes[1] - sizes[0] == full - empty


def test_what_is_not_mixed_stays_as_it_is():
    received = parse_codec("identity()").decode(
        Payload({"tokens": torch.zeros(2, 1, 1)}, {"labels": torch.tensor([1, 0])})
    )
    assert mix(received, {}, 3) is received


def test_images_are_augmented_before_they_are_normalised():
    """A flip of what a client sees otherwise."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    table = Samples(pixels, np.arange(6), [np.arange(6)], 6, [0.4, 0.5, 0.6], [0.2, 0.3, 0.1])
    plain = table.train_batch(np.arange(6), [], AT)
    flipped = table.train_batch(np.arange(6), parse_augment("flip(p=1.0)"), AT)
    torch.testing.assert_close(flipped.pixels, plain.pixels.flip(3), atol=1e-5, rtol=1e-5)
    padded = table.train_batch(np.arange(6), parse_augment("crop(padding=3)"), AT)
    black = -torch.tensor([0.4, 0.5, 0.6]) / torch.tensor([0.2, 0.3, 0.1])
    shown = padded.pixels.permute(0, 2, 3, 1).reshape(-1, 3)
    assert bool((shown - black).abs().max(dim=1).values.lt(1e-5).any()), "padding must be black"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"augment": "mixup()", "codec": "adc(ratio=0.5)"},
            "codec adc.ratio=0.5. merges samples",
        ),
        ({"augment": "mixup() | cutmix()"}, "mixes labels twice"),
        ({"augment": "crop(padding=0)"}, "padding must be greater than or equal to 1"),
        ({"augment": "blur()"}, "unknown name 'blur'"),
        ({"augment": "crop(padding=8)"}, "augment: padding of crop must be at most .* 4; got 8"),
        ({"augment": "randaugment(m=30)"}, "m must be less than 30"),
        ({"augment": "randaugment(n=20)"}, "n must be less than or equal to 15"),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        prepare(Experiment.from_dict(keys))
