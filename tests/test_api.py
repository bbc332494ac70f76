"""The Python API: five lines, objects in the place of specs, results as tables and models."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fl_split as fs
from fl_split.codecs import ADC, Identity
from simulations.data.memory import in_memory
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


@pytest.mark.parametrize(
    "model",
    ["vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)", "lenet(16)"],
)
def test_the_model_has_the_accuracy_that_the_run_told(tiny, model):
    run = tiny(model=model, dataset=images(), test_fraction=0.5)
    test = in_memory(images()).open(0.5, 0)
    size = run.summary["model_input"]["image_size"]
    pixels = torch.from_numpy(test.pixels(test.test, size, 1)).float().sub(127.5).div(127.5)
    found = run.model(pixels)
    logits = getattr(found, "logits", found)
    right = (logits.argmax(1).numpy() == test.labels(test.test)).mean()
    assert run.accuracy == pytest.approx(right)
    again = fs.load(run.folder, dataset=images())
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


def test_stages_are_cut_where_one_says(tiny):
    def maker(image_size, channels, num_classes):
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Sequential(nn.Flatten(), nn.Linear(4 * (image_size - 2) ** 2, num_classes)),
        )  # fmt: skip

    run = tiny(model=maker, cut=2, seed=3)
    assert [*run.model.stages()] == ["0", "1", "2", "3"]
    module = maker(8, 1, 10)
    given = tiny(model=module, cut=2)
    assert given.summary["experiment"]["model"].startswith("object('Sequential'")
    assert tiny(model=[*module], cut=2).rounds["accuracy"].tolist() == (
        given.rounds["accuracy"].tolist()
    )


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Flatten()), "needs two stages or more"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3, 10)), "fail for an image of shape"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), r"must give \(B, 10\)"),
        (3, "is no Model"),
    ],
)
def test_a_model_that_cannot_work_is_refused(tiny, model, said):
    with pytest.raises(ValueError, match=said):
        tiny(model=model)


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
