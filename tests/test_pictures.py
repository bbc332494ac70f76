"""Images of every kind: what is done to them is what the rule says, and it is said."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from simulations.data.decoding import look_at
from simulations.data.depth import Depth
from simulations.data.encoded import EncodedImages
from simulations.data.memory import in_memory
from simulations.data.pictures import Transform
from simulations.data.survey import Survey, look, survey
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import silent
from simulations.runs.setup import prepare


def contents(image, **how):
    file = io.BytesIO()
    image.save(file, **{"format": "PNG", **how})
    return file.getvalue()


def plain(values, dtype=np.uint8):
    return Image.fromarray(np.asarray(values, dtype=dtype))


GIF = {"format": "GIF", "save_all": True}
GRADIENT = np.arange(64, dtype=np.uint8).reshape(8, 8)


@pytest.mark.parametrize("tag", range(1, 9))
def test_an_image_is_turned_as_its_tag_says(tag):
    turns = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: np.transpose, 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T,
        8: np.rot90,
    }  # fmt: skip
    tall = np.arange(32, dtype=np.uint8).reshape(8, 4)
    exif = Image.Exif()
    exif[0x0112] = tag
    file = contents(plain(tall), exif=exif)
    shown = turns[tag](tall)
    assert look(file).size == shown.shape[::-1]
    squared = np.zeros((8, 8), dtype=np.uint8)
    if shown.shape == (8, 4):
        squared[:, 2:6] = shown
    else:
        squared[2:6] = shown
    assert np.array_equal(Transform(8, 1, fit="pad").apply(file)[0], squared)


def test_the_middle_is_cut_out_or_the_rest_filled_up():
    wide = np.repeat(np.arange(16, dtype=np.uint8)[None], 8, axis=0)  # 16 x 8, a column its number
    file = contents(plain(wide))
    cut = Transform(8, 1, fit="shortest+crop").apply(file)[0]
    assert np.array_equal(cut, wide[:, 4:12])
    padded = Transform(16, 1, fit="pad").apply(file)[0]
    assert np.array_equal(padded[4:12], wide) and not padded[:4].any() and not padded[12:].any()
    zoomed = Transform(4, 1, fit="shortest+crop", shortest=8).apply(file)[0]
    assert np.array_equal(zoomed, wide[2:6, 6:10])
    squashed = Transform(8, 1, interpolation="box").apply(contents(plain(2 * wide)))[0]
    assert squashed[0].tolist() == [1, 5, 9, 13, 17, 21, 25, 29]  # means of 0 and 2, 4 and 6, ...


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "L", "1", "CMYK"])
def test_colours_of_every_mode_are_the_same(mode):
    values = np.zeros((8, 8, 3), dtype=np.uint8)
    values[:4] = 255
    image = plain(values).convert(mode)
    how = {"format": "TIFF"} if mode == "CMYK" else {}
    found = Transform(8, 3).apply(contents(image, **how))
    assert np.array_equal(found, values.transpose(2, 0, 1))
    grey = look(contents(image, **how))
    assert Survey(modes={grey.mode: 1}).channels == (1 if mode in {"LA", "L", "1"} else 3)


@pytest.mark.parametrize(
    ("image", "how", "said"),
    [
        (plain(GRADIENT).convert("LA"), {}, "alpha channel"),
        (plain(GRADIENT), {**GIF, "append_images": [plain(GRADIENT.T.copy())]}, "several frames"),
    ],
    ids=["alpha", "frames"],
)  # fmt: skip
def test_what_is_left_out_is_said(image, how, said):
    assert any(said in remark for remark in look(contents(image, **how)).remarks)


def deep(values, kind):
    file = io.BytesIO()
    if kind == "I;16":
        plain(values, np.uint16).save(file, "PNG")
    else:
        plain(values, {"I": np.int32, "F": np.float32}[kind]).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["I;16", "I", "F"])
@pytest.mark.parametrize("high", [119, 4095, 40_000])
def test_deep_images_are_scaled_from_the_range_of_the_data_and_keep_all_levels(kind, high):
    ramp = np.linspace(0, high, 64).round().reshape(8, 8)
    looks = [look(deep(values, kind)) for values in (ramp, ramp / 2 // 1)]
    low, top = min(one.low for one in looks), max(one.high for one in looks)
    assert (low, top) == (0, high)
    found = Transform(8, 1, low=low, high=top).apply(deep(ramp, kind))[0]
    assert found.dtype == np.uint16
    assert len(np.unique(found)) == len(np.unique(ramp))
    assert np.allclose(found / 65_535, ramp / high, atol=1 / 65_535)


def deep_runs(train, test, kind="I;16"):
    """Return what becomes of images of one value each, and what is said of them."""
    halves = []
    for values in (train, test):
        files = [
            {"bytes": deep(np.full((8, 8), value), kind), "path": None}
            if value > 255
            else {"bytes": contents(plain(np.full((8, 8), value))), "path": None}
            for value in values
        ]
        halves.append((files, ["a", "b"] * (len(values) // 2)))
    setup = run_on_splits(*halves)
    (depth,) = [one for one in setup.decisions if one.about == "depth"]
    return *[half.pixels[:][:, 0, 0, 0].tolist() for half in (setup.train, setup.test)], depth


def test_deep_images_are_scaled_from_the_training_images_and_others_are_clipped():
    """1000..3000 becomes 0..65535; of the test images 500 and 4000 lie outside."""
    train, test, said = deep_runs([1000, 3000, 2000, 1500], [500, 4000, 2000, 3000])
    assert train == [0, 65535, 32768, 16384]
    assert test == [0, 65535, 32768, 65535]
    assert said.text == (
        "8 images of more than 8 bits; 1000..3000 is scaled to 0..1; 2 test images have values "
        "outside, which are clipped"
    )
    assert said.is_warning


def test_deep_images_held_out_do_not_shift_the_scale():
    values = np.arange(2000, 2010, dtype=np.uint16).repeat(64).reshape(10, 8, 8)
    looked = look_at(in_memory((values, ["a", "b"] * 5)).open(0.4, 0), "error", silent)
    train, test = (2000 + half.rows for half in (looked.source.train, looked.source.test))
    outside = int(((test < train.min()) | (test > train.max())).sum())
    assert outside > 0
    assert looked.depth == Depth(train.min(), train.max(), 10, 10, outside, is_of_test=False)


def test_deep_images_of_one_value_are_black():
    train, test, said = deep_runs([700] * 4, [700, 701])
    assert train == [0] * 4 and test == [0, 94]  # 65535 / 700
    assert "700..1400 is scaled to 0..1; 1 test images" in said.text


def test_deep_images_to_test_on_alone_have_their_own_range():
    train, test, said = deep_runs([0, 255] * 2, [1000, 2000])
    assert (train, test) == ([0, 65535] * 2, [0, 65535])
    assert "range of the test images" in said.text and said.is_warning


def test_eight_bits_among_deep_images_keep_their_range():
    transform = Transform(8, 3, low=0, high=4095)
    white = transform.apply(contents(plain(np.full((8, 8, 3), 255))))
    assert white.dtype == np.uint16 and (white == 65_535).all()


def png_of_sixteen_bits(image):
    """A PNG header that says 16 bits; its pixels are not needed to look at it."""
    file = bytearray(contents(image))
    file[24] = 16
    file[29:33] = zlib.crc32(file[12:29]).to_bytes(4)
    return bytes(file)


def ppm_of_sixteen_bits(header=b"P6\n8 8\n65535\n"):
    """Red, green and blue of a file of Netpbm: its upper bytes are 200, 100 and 7."""
    values = np.full((8, 8, 3), np.array([200, 100, 7]) * 257, dtype=">u2")
    return header + values.tobytes()


def tiff_of_sixteen_bits():
    """A TIFF of one pixel in 16-bit colour, which PIL does not write: tags, then 200, 100, 7."""
    tags = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 3, 110), (262, 3, 1, 2), (273, 4, 1, 116)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 6)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    file = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    return file.ljust(110, b"\0") + struct.pack("<6H", 16, 16, 16, 51400, 25700, 1799)


@pytest.mark.parametrize(
    "file",
    [
        png_of_sixteen_bits(plain(np.zeros((8, 8, 3)))),
        png_of_sixteen_bits(plain(GRADIENT).convert("LA")),
        ppm_of_sixteen_bits(),
        ppm_of_sixteen_bits(b"P6 # of a camera\n8 8\n# 12 bits\n4095\n"),
        tiff_of_sixteen_bits(),
    ],
)
def test_colour_of_sixteen_bits_is_said_to_lose_levels(file):
    assert any("upper 8 bits" in remark for remark in look(file).remarks)


@pytest.mark.parametrize("file", [ppm_of_sixteen_bits(), tiff_of_sixteen_bits()])
def test_colour_of_sixteen_bits_stays_colour(file):
    images = [{"bytes": file, "path": None}] * 10
    setup = run_on(images, image_size=8)
    assert np.array_equal(setup.train.pixels[:1][0, :, 0, 0], [200, 100, 7])
    assert said(setup, "channels") == "3 (colour)"
    assert "10 of more than 8 bits a colour" in said(setup, "images")


def test_eight_bits_are_not_said_to_lose_levels():
    for how in ({}, {"format": "TIFF"}, {"format": "PPM"}):
        assert not look(contents(plain(np.zeros((8, 8, 3))), **how)).remarks


def run_on(images, labels=None, **keys):
    labels = labels or ["a", "b"] * (len(images) // 2)
    return run_on_splits(images, labels, **keys)


def run_on_splits(*data, **keys):
    tiny = "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)"
    from simulations.api.objects import with_specs

    values = {"clients": 2, "partition": "iid()", "model": tiny, "cut": 1, "engine": "inline()"}
    return prepare(Experiment.from_dict(with_specs({**values, "dataset": data, **keys})))


def said(setup, about):
    return " | ".join(one.text for one in setup.decisions if one.about == about)


def colours(count, side=8):
    return [plain(np.full((side, side, 3), (10 * k, 0, 200))) for k in range(count)]


def test_colour_wins_over_a_first_image_that_is_grey():
    setup = run_on([colours(1)[0].convert("L"), *colours(9)])
    assert setup.train.pixels.shape[1] == 3
    assert "1 of 10 images are grey" in said(setup, "channels")
    assert run_on(colours(10), channels=1).train.pixels.shape[1] == 1


def test_the_commonest_size_wins_and_others_are_counted():
    setup = run_on([*colours(1, 33), *colours(8), *colours(1, 5)])
    assert setup.train.pixels.shape[2:] == (8, 8)
    assert "8x8 (8), 33x33 (1), 5x5 (1): 2 are resized (squash)" in said(setup, "size")
    assert run_on(colours(10), image_size=16).train.pixels.shape[2:] == (16, 16)
    with pytest.raises(ValueError, match=r"patch_size.*the images are 33x33 \(10\): image_size="):
        run_on(colours(10, 33))


def test_training_and_test_images_may_be_fitted_in_another_way():
    wide = plain(np.repeat(np.arange(16, dtype=np.uint8)[None], 8, axis=0))
    keys = {"resize": "shortest+crop", "test_resize": "pad", "image_size": 8, "test_fraction": 0.4}
    setup = run_on([wide] * 10, **keys)
    assert (setup.train.pixels[:] >= 4).all()
    assert not setup.test.pixels[:][:, :, :2].any()


def test_images_that_cannot_be_used_are_an_error_or_skipped_and_named():
    torn = contents(plain(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)))
    files = [*[{"bytes": contents(one), "path": None} for one in colours(9, 64)]]
    files.insert(3, {"bytes": torn[: len(torn) // 2], "path": None})
    files.append({"bytes": b"junk", "path": None})
    labels = ["a", "b"] * 5 + ["a"]
    with pytest.raises(
        ValueError, match=r"1 of 11 images cannot be used, the first .* row 10: .*skip"
    ):
        run_on(files, labels, image_size=8)  # the header of the torn one is whole
    setup = run_on(files, labels, image_size=8, on_bad_image="skip")
    assert len(setup.train.labels) + len(setup.test.labels) == 9
    assert "2 of 11 images cannot be used, the first is that of row 3" in said(setup, "images")
    with pytest.raises(ValueError, match=r"image of row 3 cannot be used: .*skip"):
        run_on(files[:-1], labels[:-1], image_size=8)


def test_a_survey_can_be_written_and_read_again():
    data = in_memory(([*colours(3), colours(1)[0].convert("LA")], list("abab"))).train
    images = EncodedImages(data, "image", np.arange(4))
    found = survey(images)
    assert found == Survey.of_record(found.record())
    assert (found.sizes, found.modes) == ({(8, 8): 4}, {"RGB": 3, "LA": 1})
    other = survey(EncodedImages(data, "image", np.arange(3)))
    assert other.digest != found.digest
