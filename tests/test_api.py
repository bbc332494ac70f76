"""The Python API: five lines, objects in the place of specs, results as tables and models."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fl_split as fs
from fl_split.codecs import ADC, Codec
from fl_split.models.own import OwnModel
from fl_split.payload import Payload
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


class Halved(Codec):
    """A codec that only this file has: 16 bits for each number."""

    def pack(self, payload, generator):
        return Payload({k: value.half() for k, value in payload.carried.items()}, payload.side)

    def unpack(self, packed):
        return Payload({k: value.float() for k, value in packed.carried.items()}, packed.side)

    def __repr__(self):
        return "Halved()"


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
def test_the_model_has_the_accuracy_that_the_run_told(tiny, keys, decoded):
    run = tiny(**keys, dataset=images(), test_fraction=0.5)
    test = in_memory(images()).open(0.5, 0)
    size = run.summary["model_input"]["image_size"]
    pixels = torch.from_numpy(decoded(test, size)[1]).float().sub(127.5).div(127.5)
    found = run.model(pixels)
    logits = getattr(found, "logits", found)
    right = (logits.argmax(1).numpy() == test.test_labels).mean()
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
    one = run.rounds.iloc[0]  # half of what goes up, beside labels; all of what comes down
    assert 0.5 < one["payload_bytes_up"] / one["smashed_bytes"] < 0.52
    assert run.experiment.parts.codec.unpack  # it is at hand in this process
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


def test_a_comparison_has_a_row_for_each_run(tmp_path):
    both = fs.compare(
        {"none": {}, "own": {"codec": Halved()}}, **TINY, out=tmp_path / "both", progress=False
    )
    assert both.table["run"].tolist() == ["none", "own"]
    assert both.table["ratio"].round(2).tolist() == [1.0, 0.75]
    assert isinstance(both.runs["own"].experiment.parts.codec, Halved)
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
    ratios = [run.summary["ratio"] for run in study.runs.values()]
    assert [round(ratio, 2) for ratio in ratios] == [1.0, 0.75]
    assert all(run.model for run in study.runs.values())
    first = {run.folder.name: run.folder.stat().st_mtime_ns for run in study.runs.values()}
    more = sweep(range(2))
    assert len(more.runs) == 4 and more.table["final_accuracy"].notna().all()
    assert all((tmp_path / "grid" / name).stat().st_mtime_ns == t for name, t in first.items())


def test_a_report_is_one_file(tiny, tmp_path):
    run = tiny()
    page = fs.report(run.folder, tmp_path / "page.md")
    assert f"{100 * run.accuracy:.1f}" in page.read_text()


def test_a_folder_without_results_says_so(tmp_path):
    with pytest.raises(ValueError, match="holds no results"):
        fs.load(tmp_path)


def test_a_bar_is_shown_where_one_asks(tiny, capfd):
    tiny(progress=True)
    assert "2/2" in capfd.readouterr().err
    tiny(progress=False)
    assert capfd.readouterr().err == ""


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
    grid={"codec": [Own()]}, clients=2, rounds=1, model="vit(hidden_size=16, "
    "num_hidden_layers=2, num_attention_heads=2, patch_size=4)", cut=1, out="grid", progress=False
)
print(*study.table["status"])
'''


@pytest.mark.slow
def test_a_plain_script_sweeps_over_classes_of_its_own(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["complete"], done.stderr  # once, not once more


def test_what_is_given_again_must_be_the_same(tiny):
    run = tiny(codec=Halved())
    with pytest.raises(ValueError, match=r"rounds: the run in .* has 2, got 77"):
        _ = fs.load(run.folder, rounds=77).experiment
    assert isinstance(fs.load(run.folder, codec=Halved()).experiment.parts.codec, Halved)


def test_a_fingerprint_is_the_same_in_every_process(tmp_path):
    code = (
        "from fl_split.codecs import Codec\n{}"
        "class Own(Codec):\n    def pack(self, payload, generator):\n"
        "        return payload if 'k' in {{'u', 'v', 'w'}} else {}\n"
    )
    (tmp_path / "script.py").write_text(
        "from simulations.api.objects import as_spec\nimport same, other\n"
        "for module in (same, other):\n    print(as_spec('codec', module.Own()))\n"
    )

    def told(seed, comment):
        (tmp_path / "same.py").write_text(code.format(comment, "payload"))
        (tmp_path / "other.py").write_text(code.format(comment, "None"))
        return subprocess.run(
            [sys.executable, str(tmp_path / "script.py")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip

    same, other = told("1", "")
    assert same.startswith("object('Own'") and other != same
    assert told("2", "# a line\n") == [same, other]


def test_a_trained_codec_is_part_of_the_model(tiny, decoded):
    run = tiny(codec="bottlenet(ratio=0.5)", dataset=images(), test_fraction=0.5)
    test = in_memory(images()).open(0.5, 0)
    pixels = torch.from_numpy(decoded(test, 8)[1]).float().sub(127.5).div(127.5)
    right = (run.model(pixels).argmax(1).numpy() == test.test_labels).mean()
    assert run.accuracy == pytest.approx(right)


def test_keys_in_which_cells_of_a_study_differ_are_refused():
    with pytest.raises(ValueError, match="codec differs between the cells of pareto_digits"):
        fs.pareto("pareto_digits", codec="fp16")


def test_files_that_change_between_two_runs_are_read_again(tmp_path):
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "b").mkdir()

    def write(count):
        for number in range(count):
            for kind in "ab":
                image = Image.fromarray(np.full((8, 8), 99, dtype=np.uint8))
                image.save(tmp_path / "data" / kind / f"{number}.png")
        keys = {**TINY, "dataset": f"local(path={str(tmp_path / 'data')!r})", "clients": 2}
        run = fs.run(**keys, partition="iid()", out=tmp_path / f"run{count}")
        return int(run.rounds["samples"].iloc[0])

    assert [write(10), write(20)] == [16, 32]  # four fifths are trained on


def test_samples_of_nobody_are_warned_of(tiny):
    pixels, labels = images(20)
    with pytest.warns(UserWarning, match="nobody holds 12 of the training images"):
        tiny(dataset=((pixels, labels), images(6)), partition=[range(4), range(4, 8)], clients=2)


def test_runs_without_a_folder_get_one_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [fs.run(**TINY) for _ in range(2)]
    monkeypatch.chdir("/")
    assert len({run.folder for run in runs}) == 2 and all(len(run.rounds) == 2 for run in runs)


def test_numbers_of_numpy_are_numbers(tiny, tmp_path):
    assert tiny(clients=np.int64(3)).summary["experiment"]["clients"] == 3
    grid = {"codec": "identity", "seed": np.arange(1)}
    study = fs.sweep(grid=grid, **TINY, out=tmp_path / "grid")
    assert len(study.runs) == 1 and len(study.plot().axes) == 3
