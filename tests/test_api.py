"""The Python API: five lines, objects in the place of specs, results as tables and models."""

import subprocess
import sys
import warnings

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import fl_split as fs
from fl_split.codecs import ADC, Identity
from fl_split.models.own import OwnModel
from simulations.data.memory import as_uint8, in_memory
from simulations.data.sources import DataError
from strategies import Parallel

TINY = {
    "clients": 4,
    "rounds": 2,
    "model": "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)",
    "cut": 1,
    "batch_size": 64,
    "engine": "inline()",
}


def images(count=60, side=8, classes=3):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (count, side, side), dtype=np.uint8)
    return pixels, np.arange(count) % classes


class Halved(Identity):
    """A codec that only this file has."""

    def pack(self, payload, generator):
        return super().pack(payload, generator)


@pytest.fixture
def tiny(tmp_path):
    def run(**keys):
        return fs.run(**{**TINY, **keys}, out=tmp_path / f"run{len([*tmp_path.iterdir()])}")

    return run


def test_importing_costs_nothing_until_something_is_used():
    code = "import sys, fl_split as fs; print({'torch', 'flwr', 'pandas'} & {*sys.modules}, fs.run)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("set() <function run")
    with pytest.raises(AttributeError, match="fl_split has no 'rum'; it has"):
        _ = fs.rum


def test_a_run_gives_tables_a_summary_a_model_and_a_plot(tiny, capfd):
    told = []
    run = tiny(codec="adc(ratio=0.5)", callback=lambda row, result: told.append(row["round"]))
    assert told == [1, 2] == run.rounds["round"].tolist()
    assert run.accuracy == run.summary["final_accuracy"] == run.rounds["accuracy"].iloc[-1]
    assert run.clients.groupby("round")["payload_bytes_up"].sum().tolist() == (
        run.rounds["payload_bytes_up"].tolist()
    )
    assert run.experiment.codec.startswith("adc(ratio=0.5")
    assert len(run.plot().axes) == 3
    assert capfd.readouterr().out == ""  # nothing is printed


def own(image_size, channels, num_classes):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * (image_size - 2) ** 2, num_classes)),
    )  # fmt: skip


VIT = "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)"


@pytest.mark.parametrize(
    "keys",
    [
        {"model": VIT},
        {"model": VIT, "end": 2},
        {"model": "lenet(16)"},
        {"model": "resnet18(width=4, small_images=True)"},
        {"model": own(8, 1, 3), "cut": 2},
        {"model": own, "cut": 1, "end": 3},
        {"model": OwnModel(own, image_size=12), "cut": 2, "strategy": "fedavg()"},
    ],
    ids=["vit", "u-shape", "lenet", "resnet18", "own", "function", "sized"],
)
def test_the_model_has_the_accuracy_that_the_run_told(tiny, keys):
    run = tiny(**keys, dataset=images(), test_fraction=0.5)
    test = in_memory(images()).open(0.5, 0)
    size = run.summary["model_input"]["image_size"]
    pixels = torch.from_numpy(test.pixels(test.test, size, 1)).float().sub(127.5).div(127.5)
    found = run.model(pixels)
    logits = getattr(found, "logits", found)
    right = (logits.argmax(1).numpy() == test.labels(test.test)).mean()
    assert run.accuracy == pytest.approx(right)
    objects = {} if isinstance(keys["model"], str) else {"model": keys["model"]}
    again = fs.load(run.folder, dataset=images(), **objects)
    assert torch.equal(getattr(again.model(pixels), "logits", again.model(pixels)), logits)


def test_an_object_of_ours_is_its_spec(tiny):
    objects = tiny(codec=ADC(ratio=0.5), strategy=Parallel())
    specs = tiny(codec="adc(ratio=0.5)", strategy="parallel()")
    assert objects.experiment.codec == specs.experiment.codec
    assert objects.accuracy == specs.accuracy


def test_an_object_of_the_user_is_remembered_and_asked_for(tiny):
    run = tiny(codec=Halved(), checkpoint_every=1, budget="rounds(limit=1)")
    assert run.summary["foreign"]["codec"][0]["part"].endswith(":Halved")
    saved = fs.load(run.folder)
    with pytest.raises(ValueError, match="was an object in memory; give it again"):
        _ = saved.experiment


def test_a_run_of_objects_that_is_stopped_goes_on_to_the_same_bits(tiny, tmp_path):
    class Stop(Exception):
        pass

    def stop(row, result):
        if row["round"] == 1:
            raise Stop

    given = {"codec": Halved(), "dataset": images(), "checkpoint_every": 1}
    whole = tiny(**given)
    with pytest.raises(Stop):
        fs.run(**TINY, **given, out=tmp_path / "stopped", callback=stop)
    rest = {key: given[key] for key in ("codec", "dataset")}
    with pytest.raises(ValueError, match=r"dataset: .* was an object"):
        fs.resume(tmp_path / "stopped", codec=Halved())
    with pytest.raises(ValueError, match=r"dataset: the run in .* has \"object\('60 images'"):
        fs.resume(tmp_path / "stopped", **{**rest, "dataset": images(61)})
    with pytest.raises(ValueError, match="rounds: the run in"):
        fs.resume(tmp_path / "stopped", **rest, rounds=9)
    resumed = fs.resume(tmp_path / "stopped", **rest)
    mine, its = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(mine[key], its[key]) for key in mine)
    assert resumed.rounds["accuracy"].tolist() == whole.rounds["accuracy"].tolist()


def test_ctrl_c_says_where_the_results_are(tmp_path):
    def stop(row, result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"fl_split.load\('.*stopped'\) reads"):
        fs.run(**TINY, out=tmp_path / "stopped", callback=stop)
    run = fs.load(tmp_path / "stopped")
    assert run.summary["status"] == "interrupted" and len(run.rounds) == 1 and run.model


def _as_folder_table(tmp_path, pixels, labels):
    rows = []
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = tmp_path / f"{number:02d}.png"
        Image.fromarray(image).save(path)
        rows.append({"file": str(path), "class": f"class {label}"})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "form", ["arrays", "tensors", "channels", "dataset", "dict", "torch", "table", "files"]
)
def test_data_sets_of_every_form_are_the_same_images(tmp_path, form):
    pixels, labels = images(12)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [Image.fromarray(one) for one in pixels], "label": labels.tolist()}
    library = datasets.Dataset.from_dict(rows, features)
    floats = torch.from_numpy(pixels).float() / 255
    given = {
        "arrays": (pixels, labels),
        "tensors": (floats, torch.from_numpy(labels)),
        "channels": (np.repeat(pixels[:, None], 3, axis=1), labels),
        "dataset": library,
        "dict": datasets.DatasetDict(train=library),
        "torch": TensorDataset(floats[:, None], torch.from_numpy(labels)),
        "table": pd.DataFrame(rows),
        "files": _as_folder_table(tmp_path, pixels, labels),
    }[form]
    source = in_memory(given).open(0.25, 0)
    held = {
        bytes(table[row, 0]): int(label)
        for half in (source.train, source.test)
        for table, kinds in [(source.pixels(half, 8, source.channels), source.labels(half))]
        for row, label in enumerate(kinds)
    }
    assert held == {bytes(image): int(label) for image, label in zip(pixels, labels, strict=True)}
    assert source.channels == (3 if form == "channels" else 1)


def test_test_images_may_be_given_apart():
    pixels, labels = images(12)
    source = in_memory(((pixels[:9], labels[:9]), (pixels[9:], labels[9:]))).open(0.5, 0)
    assert len(source.train) == 9 and len(source.test) == 3
    two = in_memory((list(pixels[:2]), [0, 1]))  # two images are no train and test
    assert len(two.train) == 2 and two.test is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((4, 8)), r"must be \(n, H, W\)"),
        (np.full((4, 8, 8), 2.0), "must lie in 0 to 1, got 2 to 2"),
        (np.zeros((4, 8, 8), dtype=np.int64), "must be uint8, or floats"),
    ],
)
def test_arrays_that_are_no_images_are_refused(given, said):
    with pytest.raises(DataError, match=said):
        as_uint8(given)


def test_data_that_are_none_are_refused(tiny):
    with pytest.raises(ValueError, match="dataset: 12 images, but labels of shape"):
        tiny(dataset=(images(12)[0], images(11)[1]))
    with pytest.raises(ValueError, match="dataset: a table needs a column of images"):
        tiny(dataset=pd.DataFrame({"picture": [1]}))
    with pytest.raises(ValueError, match="dataset: int is no data set"):
        tiny(dataset=3)


def test_rows_by_client_are_a_partition(tiny):
    rows = [range(0, 5), range(5, 30), [40]]
    run = tiny(dataset=((images(48)), images(6)), partition=rows, clients=3)
    assert run.clients.query("round == 1")["samples"].tolist() == [5, 25, 1]
    assert run.summary["unheld"]["samples"] == 48 - 31
    with pytest.raises(ValueError, match="partition: row 4 is given to a client twice"):
        tiny(partition=[[4], [4]], clients=2)


def test_a_comparison_has_a_row_for_each_run(tmp_path):
    both = fs.compare(
        {"none": {}, "own": {"codec": Halved()}}, **TINY, out=tmp_path / "both", progress=False
    )
    assert both.table["run"].tolist() == ["none", "own"]
    assert both.runs["own"].experiment.parts.codec == Halved()
    loaded = fs.load(tmp_path / "both")
    assert loaded.table["final_accuracy"].tolist() == both.table["final_accuracy"].tolist()
    with pytest.raises(ValueError, match="seed differs between the runs"):
        fs.compare([{"seed": 1}], seed=2)


def test_a_sweep_has_a_row_for_each_cell_and_goes_on(tmp_path):
    def sweep(seeds):
        grid = {"codec": ["identity", Halved()], "seed": seeds}
        return fs.sweep(grid=grid, **TINY, out=tmp_path / "grid", jobs=2, progress=False)

    study = sweep(range(1))
    assert study.table["status"].tolist() == ["complete"] * 2
    first = {run.folder.name: run.folder.stat().st_mtime_ns for run in study.runs.values()}
    more = sweep(range(2))
    assert len(more.runs) == 4 and more.table["final_accuracy"].notna().all()
    assert all((tmp_path / "grid" / name).stat().st_mtime_ns == t for name, t in first.items())


def test_a_report_is_one_file(tiny, tmp_path):
    page = fs.report(tiny().folder, tmp_path / "page.md")
    assert "accuracy" in page.read_text()


def test_a_folder_without_results_says_so(tmp_path):
    with pytest.raises(ValueError, match="holds no results"):
        fs.load(tmp_path)


def test_a_bar_is_shown_where_one_asks(tiny, capfd):
    tiny(progress=True)
    assert "2/2" in capfd.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny(progress=False)


@pytest.mark.slow
def test_a_ray_that_runs_already_is_used_and_left_running(tiny):
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        on_ray = tiny(engine="ray()", codec=Halved())
        assert ray.is_initialized()
        with pytest.raises(ValueError, match="2 workers need a CPU each, Ray has 1 free"):
            tiny(engine="ray(workers=2)")
    finally:
        ray.shutdown()
    inline = tiny(codec=Halved())
    mine, its = on_ray.model.state_dict(), inline.model.state_dict()
    assert all(torch.equal(mine[key], its[key]) for key in mine)


def test_torch_has_its_threads_back(tiny):
    torch.set_num_threads(2)
    tiny()
    assert torch.get_num_threads() == 2


SCRIPT = '''
import fl_split as fs
from fl_split.codecs import Identity

class Own(Identity):
    """A codec of this script."""

study = fs.sweep(
    grid={"codec": [Own(), "fp16()"]}, clients=2, rounds=1, model="vit(hidden_size=16, "
    "num_hidden_layers=2, num_attention_heads=2, patch_size=4)", cut=1, out="grid", progress=False
)
print(*study.table["status"])
'''


@pytest.mark.slow
def test_a_plain_script_sweeps_over_classes_of_its_own(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["complete", "complete"], done.stderr  # once, not once more
