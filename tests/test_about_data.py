"""What is decided about data is shown, stored and compared; where images lie changes no result."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import fl_split as fs
from simulations.cli import main as cli
from simulations.data import cache

TINY = {
    "clients": 3, "rounds": 2, "partition": "iid()", "engine": "inline()", "batch_size": 4,
    "local_steps": 2, "cut": 1, "checkpoint_every": 1,
    "model": "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Noise in two classes, one image of another size, one file that is torn, one that is none."""
    draw = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(15):
            image = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            image.save(tmp_path / "d" / name / f"{number:02d}.png")
    image.resize((12, 9)).save(tmp_path / "d" / "bee" / "odd.png")
    return tmp_path / "d"


def run(folder, out, **keys):
    values = {**TINY, "dataset": f"local(path={str(folder)!r})", **keys}
    return fs.run(**values, out=out, progress=False)


def test_what_was_decided_is_stored_with_the_run(folder, tmp_path):
    done = run(folder, tmp_path / "r")
    about = json.loads((tmp_path / "r" / "data.json").read_text())
    assert done.summary["data"] == about
    assert (about["training_images"], about["test_images"], about["classes"]) == (24, 7, 2)
    assert about["image_shape"] == [3, 8, 8]
    texts = {one["about"]: one["text"] for one in about["decisions"]}
    assert texts["size"] == "8x8; the images are 8x8 (30), 12x9 (1): 1 are resized (squash)"
    assert texts["splits"] == "7 of 31 images are held out to test, by class"


@pytest.mark.parametrize("skew", ["none()", "noise(std=0.2)"])
def test_where_images_lie_changes_no_result(folder, tmp_path, monkeypatch, skew):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    found = [run(folder, tmp_path / "memory", skew=skew)]
    monkeypatch.setattr(cache, "IN_MEMORY", 0)
    found.append(run(folder, tmp_path / "fly", skew=skew, cache_gb=0.0))
    assert not cache.entries()
    found.append(run(folder, tmp_path / "disk", skew=skew))
    assert cache.entries()
    states = [(one.folder / "model.safetensors").read_bytes() for one in found]
    assert states[0] == states[1] == states[2]


def swap_classes(folder):
    for first, second in (("ant", "x"), ("bee", "ant"), ("x", "bee")):
        (folder / first).rename(folder / second)


def fewer(folder):
    (folder / "ant" / "00.png").unlink()


def renamed(folder):
    (folder / "ant").rename(folder / "wasp")


def repainted(folder):
    Image.new("RGB", (8, 8)).save(folder / "ant" / "00.png")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap_classes, "images were changed, added or removed"),
        (fewer, "images were changed, added or removed"),
        (repainted, "images were changed, added or removed"),
        (renamed, "the classes have other names"),
    ],
)
def test_a_run_does_not_go_on_with_other_data(folder, tmp_path, change, said):
    def stop(row, result):
        raise KeyboardInterrupt

    values = {**TINY, "dataset": f"local(path={str(folder)!r})"}
    with pytest.raises(KeyboardInterrupt):
        fs.run(**values, out=tmp_path / "r", callback=stop, progress=False)
    shutil.copytree(folder, tmp_path / "kept")
    change(folder)
    with pytest.raises(Exception, match=f"the data are not those .* begun with: {said}"):
        fs.resume(tmp_path / "r", progress=False)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "kept", folder)
    assert fs.resume(tmp_path / "r", progress=False).summary["status"] == "complete"


@pytest.mark.parametrize("torn", ['{"fingerprint": null}', '{"fingerprint": [1]}', "[]", "{", ""])
def test_a_damaged_note_of_the_data_is_named(folder, tmp_path, torn):
    def stop(row, result):
        raise KeyboardInterrupt

    values = {**TINY, "dataset": f"local(path={str(folder)!r})"}
    with pytest.raises(KeyboardInterrupt):
        fs.run(**values, out=tmp_path / "r", callback=stop, progress=False)
    (tmp_path / "r" / "data.json").write_text(torn)
    with pytest.raises(ValueError, match=r"data\.json cannot be read \(.*begin the run anew"):
        fs.resume(tmp_path / "r", progress=False)


def shown(*arguments):
    done = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_data_can_be_looked_at_before_they_are_trained_on(folder, tmp_path):
    spec = f"local(path={str(folder)!r})"
    text = shown("data", spec, "image_size=16", "-o", tmp_path / "ten.png")
    for part in ("16x16; the images are", "ant 12 3", "bee 12 4", "2 classes 24 7"):
        assert part in text
    with Image.open(tmp_path / "ten.png") as picture:
        assert min(picture.size) > 100
    (tmp_path / "c.toml").write_text(f'dataset = "{spec}"\nimage_size = 4\nclients = 3\n')
    assert "4x4; the images are" in shown("data", tmp_path / "c.toml")


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_look_at_data_finds_an_image_that_is_cut_in_half(folder, tmp_path, ending):
    torn = folder / "bee" / f"torn.{ending}"
    draw = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(draw).save(torn)
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    spec = f"local(path={str(folder)!r})"
    done = CliRunner().invoke(cli.app, ["data", spec])
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert "1 of 32 images cannot be used, the first is that of row 31" in said
    assert "on_bad_image='skip' leaves them out" in said
    assert "left out: 1 of 32 images" in shown("data", spec, "on_bad_image=skip")
    with pytest.raises(ValueError, match=rf"row 31 .*torn.{ending}\) cannot be used"):
        run(folder, tmp_path / "r", image_size=8)


def test_a_run_shows_what_was_decided(folder, tmp_path):
    spec = f"dataset=local(path={str(folder)!r})"
    settings = [f"{key}={value}" for key, value in TINY.items()]
    (tmp_path / "c.toml").write_text("")
    text = shown("run", tmp_path / "c.toml", spec, *settings, "--out", tmp_path / "r")
    assert "7 of 31 images are held out to test" in text and "test_fraction=..." in text


def test_the_cache_is_shown_and_cleared(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    assert "0 entries" in shown("cache")
    monkeypatch.setattr(cache, "IN_MEMORY", 0)
    run(folder, tmp_path / "r")
    assert "1 entries" in shown("cache")
    assert "GB freed" in shown("cache", "--clear")
    assert "0 entries" in shown("cache")


@pytest.mark.parametrize("keys", [{}, {"strategy": "centralised()"}, {"engine": "ray(workers=1)"}])
def test_an_image_that_ends_early_ends_a_run_that_decodes_on_the_fly(
    folder, tmp_path, monkeypatch, keys
):
    monkeypatch.setattr(cache, "IN_MEMORY", 0)
    for torn in (folder / "ant").iterdir():
        draw = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
        Image.fromarray(draw).save(torn)
        torn.write_bytes(torn.read_bytes()[:2000])
    with pytest.raises(
        RuntimeError, match=r"image of row \d+ \(.*ant.*png\) cannot be used: .*skip"
    ):
        run(folder, tmp_path / "r", cache_gb=0.0, image_size=8, **keys)
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert (summary["status"], summary["ended_by"]) == ("failed", "training failed")


def test_an_image_that_ends_early_ends_a_run_that_is_tested_on_it(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "IN_MEMORY", 0)
    shutil.copytree(folder, tmp_path / "both" / "train")
    shutil.copytree(folder, tmp_path / "both" / "test")
    torn = tmp_path / "both" / "test" / "bee" / "odd.png"
    torn.write_bytes(torn.read_bytes()[:120])
    with pytest.raises(RuntimeError, match=r"image of row \d+ \(.*odd.png\) cannot be used"):
        run(tmp_path / "both", tmp_path / "r", cache_gb=0.0, image_size=8)


def test_data_can_be_looked_at_from_python_as_on_the_command_line(
    folder, tmp_path, capfd, monkeypatch
):
    spec = f"local(path={str(folder)!r})"
    seen = fs.data(spec, image_size=8, progress=False)
    assert seen.classes.to_dict("list") == {
        "class": ["ant", "bee"], "training_images": [12, 12], "test_images": [3, 4],
    }  # fmt: skip
    printed = CliRunner().invoke(cli.app, ["data", spec, "image_size=8"]).output
    words = set(printed.split())
    for text in seen.decisions["decision"]:
        assert set(text.split()) <= words
        assert text in repr(seen)
    html = seen._repr_html_()
    assert html.count("<table") == 2 and "12x9 (1): 1 are resized (squash)" in html
    seen.plot().savefig(tmp_path / "ten.png")
    assert Image.open(tmp_path / "ten.png").size[0] > 100
    assert capfd.readouterr() == ("", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"'d' is a folder; write \"local\(path='d'\)\""):
        fs.data(folder.relative_to(tmp_path))


def test_what_was_decided_for_a_run_is_read_back(folder, tmp_path):
    spec = f"local(path={str(folder)!r})"
    done = run(folder, tmp_path / "r", image_size=8, skew="label_noise(rate=0.9)").data
    before = fs.data(spec, progress=False, **{k: TINY[k] for k in ("model", "cut")}, image_size=8)
    assert done.dataset == before.dataset == "local(path='d')"
    assert done.classes.equals(before.classes)  # as in the files, whatever the clients' labels
    assert done.decisions.equals(before.decisions)
    assert done.decisions.columns[:2].tolist() == ["what", "decision"]
    with pytest.raises(ValueError, match="a run keeps no images"):
        done.plot()
    (tmp_path / "r" / "data.json").write_text("{")
    with pytest.raises(ValueError, match=r"data.json cannot be read .*fl_split.data"):
        _ = fs.load(tmp_path / "r").data
