"""A spec that cannot be read is answered with one that can: quotes, or what reads a path."""

import re

import pytest
from typer.testing import CliRunner

from fl_split.spec_errors import SpecError
from simulations.cli import main as cli
from simulations.runs.experiment import Experiment


def refused(**values):
    with pytest.raises(SpecError) as error:
        Experiment.from_dict(values)
    assert "\n" not in str(error.value)
    return str(error.value)


def advised(text):
    """Return what stands between double quotes behind the word write."""
    found = re.search(r'write "(.*?)"', text)
    return found and found[1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Stand in a folder with a folder of images and a few files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phone" / "cat").mkdir(parents=True)
    for name in ("d.npz", "my-set.zip", "rates.csv"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("key", "path", "reader", "kind"),
    [
        ("dataset", "phone", "local", "folder"),
        ("dataset", "./phone/", "local", "folder"),
        ("dataset", "phone/cat", "local", "folder"),
        ("dataset", "d.npz", "local", "file"),
        ("dataset", "my-set.zip", "local", "file"),
        ("model", "phone", "pretrained", "folder"),
    ],
)
def test_a_path_that_is_there_is_answered_with_what_reads_it(here, key, path, reader, kind):
    said = refused(**{key: path})
    assert said == f"{key}: {path!r} is a {kind}; write \"{reader}(path='{path}')\""
    if key == "dataset":
        assert Experiment.from_dict({key: advised(said)}).parts.dataset.path == str(here / path)


def test_a_path_that_several_parts_read_is_answered_with_all_of_them(here):
    assert refused(system="rates.csv").endswith(
        "is a file; write \"awake(path='rates.csv')\" or \"traces(path='rates.csv')\""
    )


def test_an_absolute_path_and_one_from_home_are_answered_too(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    for path in (str(here / "d.npz"), "~/phone"):
        assert advised(refused(dataset=path)) == f"local(path={path!r})"


def test_a_name_that_is_no_path_is_answered_with_known_ones(here):
    known = "Known: digits, hub, local, nodes"
    assert refused(dataset="zzz").endswith(f"unknown name 'zzz'; {known}")
    assert "unknown name 'phone'" in refused(codec="phone")  # no codec reads a folder


@pytest.mark.parametrize(
    ("key", "spec", "better"),
    [
        ("system", "devices(phone_mid) | lte()", "devices('phone_mid')"),
        ("system", "devices(phone_mid, spread=0.5, law = normal)",
         "devices('phone_mid', spread=0.5, law = 'normal')"),
        ("dataset", "local(my photos)", "local('my photos')"),
        ("dataset", "local(path=/data/photos, label='x')", "local(path='/data/photos', label='x')"),
        ("model", "resnet18(small_images=true)", "resnet18(small_images=True)"),
    ],
)  # fmt: skip
def test_texts_without_quotes_are_answered_with_quotes(key, spec, better):
    assert advised(refused(**{key: spec})) == better


def test_no_quotes_are_offered_where_they_are_not_what_is_missing():
    for spec in ("adc(ratio=open('x'))", "adc(0.1", "[/a]"):
        assert advised(refused(codec=spec)) is None


def test_the_command_line_answers_so_before_anything_is_imported(here):
    said = CliRunner().invoke(cli.app, ["data", "phone"])
    assert said.exit_code == 2
    assert "local(path='phone')" in said.output
