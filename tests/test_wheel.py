"""What is installed holds everything: it runs from an empty folder, without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fl_split.spec_errors import SpecError
from simulations.runs import shipped

ROOT = Path(__file__).parents[1]
PACKAGES = ("fl_split", "simulations", "strategies")
BESIDE = ("README.md", "setup.py", "pyproject.toml")

ONLY_FROM = """
import sys
from pathlib import Path
from simulations.cli.main import app
try:
    app()
except SystemExit as end:
    assert not end.code, end.code
ours = [one for name, one in [*sys.modules.items()] if name.split(".")[0] in {packages}]
assert len(ours) > 3
outside = [one.__file__ for one in ours if not Path(one.__file__).is_relative_to({target!r})]
assert not outside, outside
"""


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build one from a copy: a build leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in BESIDE:
        shutil.copy(ROOT / name, source)
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, source)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_packages_and_the_configurations(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    ours = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    configs = {f"simulations/{path.relative_to(ROOT)}" for path in ROOT.glob("configs/*.toml")}
    assert held == ours | configs
    assert {f"{package}/py.typed" for package in PACKAGES} <= held


@pytest.mark.slow
def test_what_is_installed_runs_in_an_empty_folder_without_the_checkout(wheel, tmp_path):
    target, empty = tmp_path / "target", tmp_path / "empty"
    empty.mkdir()
    pip("install", "--no-deps", "--target", target, wheel)
    program = ONLY_FROM.format(packages=PACKAGES, target=str(target))

    def fl_split(*arguments):
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=empty,
            env={**os.environ, "PYTHONPATH": str(target)},
            capture_output=True,
            text=True,
        )

    listed = fl_split("configs")
    assert listed.returncode == 0, listed.stderr
    assert "quickstart" in listed.stdout
    ran = fl_split("run", "quickstart", "rounds=1", "clients=4", "engine=inline()", "--out", "here")
    assert ran.returncode == 0, ran.stderr
    assert (empty / "here" / "summary.json").exists()
    assert [path.name for path in empty.iterdir()] == ["here"]


def test_a_file_wins_over_the_shipped_configuration_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.find("quickstart") == ROOT / "configs" / "quickstart.toml"
    Path("quickstart").write_text("")
    assert shipped.find("quickstart") == Path("quickstart")


@pytest.mark.parametrize("name", ["quikstart", "configs/quikstart.toml", "elsewhere/quickstart"])
def test_an_unknown_name_is_answered_with_the_nearest(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=f"no configuration file '{name}'; .*'quickstart'"):
        shipped.find(name)


def test_what_runs_a_configuration_is_what_its_own_comment_says():
    found = shipped.shipped()
    assert {one.path for one in found} == {*ROOT.glob("configs/*.toml")}
    for one in found:
        second = one.path.read_text().splitlines()[1]
        assert second.startswith(f"# fl-split {one.command} configs/{one.name}.toml")
        assert one.about and f"# {one.about}" == one.path.read_text().splitlines()[0]


def test_a_copy_is_the_file_itself_and_overwrites_nothing(tmp_path):
    from typer.testing import CliRunner

    from simulations.cli import main as cli

    command = ["configs", "--copy", "quickstart", str(tmp_path / "mine")]
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    copied = tmp_path / "mine" / "quickstart.toml"
    assert copied.read_bytes() == (ROOT / "configs" / "quickstart.toml").read_bytes()
    copied.write_text("edited")
    again = CliRunner().invoke(cli.app, command)
    assert again.exit_code == 2 and "exists already" in again.stderr
    assert copied.read_text() == "edited"
