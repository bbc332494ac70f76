"""Paths: what `~` and relative ones mean, and folders that cannot be made."""

import os
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

import fl_split as fs
from fl_split.spec_errors import SpecError
from fl_split.specs import located, shortened
from fl_split.tables import Table
from simulations.data.descriptions import DATASETS
from simulations.runs.experiment import Experiment
from simulations.runs.paths import PathNotice, chosen_folder, expanded, placed
from simulations.runs.settings import read_toml
from simulations.studies.sweep import cells, read_grid


def path_of(dataset):
    """Return the path in a spelt-out data set, read as Python reads it."""
    return eval(dataset, {"local": lambda path, **more: path})


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Return a folder with a configuration, and the working folder, which is another."""
    (tmp_path / "exp").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "exp", tmp_path / "work"


def experiment(folder, spec="local(path='images')"):
    (folder / "c.toml").write_text(f'dataset = "{spec}"\n')
    return Experiment.from_dict(read_toml(folder / "c.toml"))


@pytest.mark.parametrize("place", [0, 1])
def test_a_relative_path_is_found_beside_the_file_or_in_the_working_folder(places, place):
    (places[place] / "images").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = experiment(places[0])
    assert path_of(found.dataset) == str(places[place] / "images")
    assert found.parts.dataset.path == str(places[place] / "images")


def test_of_two_the_one_beside_the_file_is_taken_and_said(places):
    for place in places:
        (place / "images").mkdir()
    with pytest.warns(PathNotice, match="both beside the configuration and in the working folder"):
        found = experiment(places[0])
    assert path_of(found.dataset) == str(places[0] / "images")


def test_home_and_absolute_paths(places, tmp_path):
    assert path_of(experiment(places[0], "local(path='~/d')").dataset) == str(tmp_path / "home/d")
    given = experiment(places[0], "local('/no/where')").dataset
    assert path_of(given) == "/no/where"


def test_a_saved_experiment_is_read_from_any_folder(places, monkeypatch):
    (places[1] / "images").mkdir()
    first = Experiment.from_dict({"dataset": "local(path='images')"})
    monkeypatch.chdir("/")
    assert Experiment.from_dict(tomllib.loads(first.to_toml())) == first


def test_what_is_not_there_may_be_a_name_on_the_hub_unless_it_begins_as_a_path(places):
    name = "pretrained(path='google/vit-base-patch16-224')"
    assert "path='google/vit-base-patch16-224'" in Experiment.from_dict({"model": name}).model
    own = Experiment.from_dict({"model": "pretrained(path='./vit')"}).model
    assert f"path='{places[1]}/vit'" in own
    for address in ("http://host:5000", "sqlite:///x.db", "", "databricks"):
        assert placed(address, "tracking", [places[1]]) == address


def test_values_of_a_sweep_and_a_comparison_know_their_folder_too(places):
    (places[0] / "a").mkdir()
    (places[0] / "b").mkdir()
    text = "[sweep]\ndataset = \"local('a'),local('b')\"\n"
    (places[0] / "c.toml").write_text(text)
    values = read_toml(places[0] / "c.toml")
    found = cells({}, read_grid(values.pop("sweep"), []))
    assert [path_of(cell.experiment.dataset) for cell in found] == [
        str(places[0] / "a"),
        str(places[0] / "b"),
    ]
    (places[0] / "c.toml").write_text("[[compare]]\ndataset = \"local('a')\"\n")
    (row,) = read_toml(places[0] / "c.toml")["compare"]
    assert path_of(Experiment.from_dict(row).dataset) == str(places[0] / "a")


def test_plugins_are_found_in_both_folders(places):
    (places[1] / "near.py").touch()
    (places[0] / "c.toml").write_text('plugins = ["near.py"]\n')
    assert read_toml(places[0] / "c.toml")["plugins"] == [str(places[1] / "near.py")]
    (places[0] / "c.toml").write_text('plugins = ["none.py"]\n')
    with pytest.raises(SpecError, match=r"no file 'none.py' in '.*exp' or '.*work'"):
        read_toml(places[0] / "c.toml")


def test_a_part_declares_its_paths_and_a_label_tells_their_last_part():
    @dataclass
    class Mine:
        place: str
        name: str = ""
        paths: ClassVar[tuple[str, ...]] = ("place",)

    table = Table(object, "none", {"mine": Mine})
    spec = "mine(name='x', place='x') | mine('x')"
    assert located(spec, table, "/{}".format) == "mine(name='x', place='/x') | mine(place='/x')"
    assert shortened("local(path='/home/me/images')", DATASETS) == "local(path='images')"
    assert shortened("local(path='my/images')", DATASETS) == "local(path='my/images')"


@pytest.mark.parametrize("name", ["写真\u30002024", "Photos\u00a02024", "a\u200bb", "\U0001f600"])
def test_letters_that_are_no_controls_may_stand_in_a_path(name):
    assert str(expanded(name)) == name


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("local(path='C:\\\\temp')", r"'\\t' cannot stand in a path; write / in place of"),
        ("local(path='~nobody_here/x')", "no such user"),
        ("local(path='\\udcff')", "not UTF-8"),
    ],
)
def test_what_is_no_path_is_refused_by_key(path, message):
    text = path.replace("\\\\", "\\")
    with pytest.raises(SpecError, match=f"dataset: .*{message}"):
        Experiment.from_dict({"dataset": text})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "out: an empty path; give a name"),
        ("file", "is a file; give a folder"),
        ("file/x", "is a file; give a folder"),
        ("dangling", "is a link that leads nowhere"),
        ("dangling/x", "is a link that leads nowhere"),
        ("loop", "is a link that leads nowhere"),
        ("x" * 300, "longer name than the file system holds"),
        (("x" * 199 + "/") * 19 + "x" * 120, "longer name than the file system holds"),
        ("x/" * 3000, "longer name than the file system holds"),
        ("a\nb", "cannot stand in a path"),
        ("/proc/x", "out: "),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_in_one_line(places, name, message):
    Path("file").touch()
    os.symlink("nowhere", "dangling")
    os.symlink("loop", "loop")
    before = sorted(os.listdir())
    with pytest.raises(SpecError) as error:
        chosen_folder(name)
    assert message in str(error.value) and len(str(error.value)) < 200
    assert str(error.value).startswith("out: ") and sorted(os.listdir()) == before


def test_the_folder_of_results(places, tmp_path):
    assert chosen_folder("~/a", "b") == tmp_path / "home" / "a"
    assert chosen_folder(None, "~/b/c") == tmp_path / "home/b/c"
    assert not (tmp_path / "home").exists(), "asking makes nothing"
    names = {chosen_folder(None, "") for _ in range(20)}
    assert len(names) == 20, "runs that begin in the same second have folders of their own"
    assert all(name.parent == Path("runs") for name in names)
    assert expanded("~") == tmp_path / "home"


def test_a_run_goes_on_from_another_folder(places, monkeypatch):
    """Data, plugins and the folder of results are named relative to where one works."""
    draw = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (places[1] / "images" / name).mkdir(parents=True)
        for number in range(6):
            pixels = draw.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(places[1] / "images" / name / f"{number}.png")
    (places[0] / "c.toml").write_text(
        "dataset = \"local(path='images')\"\nclients = 2\nrounds = 2\nengine = 'inline'\n"
        "model = 'vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)'\n"
        "cut = 1\npartition = 'iid'\nlocal_steps = 1\ncheckpoint_every = 1\n"
    )

    def stop(row, result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fs.run(places[0] / "c.toml", out="o", callback=stop)
    monkeypatch.chdir("/")
    done = fs.resume(places[1] / "o")
    assert list(done.rounds["round"]) == [1, 2] and done.summary["status"] == "complete"
