"""Folders and files of the user's that have the names of our packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fl_split.clash import ClashError, check, check_folder

ROOT = Path(__file__).parents[1]


def package(folder):
    (folder / "strategies").mkdir()
    (folder / "strategies" / "__init__.py").write_text("MINE = 1\n")
    return folder / "strategies"


def module(folder):
    (folder / "simulations.py").write_text("MINE = 1\n")
    return folder / "simulations.py"


def python(folder, *arguments, path=()):
    places = os.pathsep.join(map(str, (*path, ROOT)))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("make", [package, module])
def test_what_hides_a_package_is_named_in_one_line_by_the_command(tmp_path, make):
    hiding = make(tmp_path)
    done = python(tmp_path, "-m", "fl_split", "list", "adc")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: {str(hiding)!r} hides fl-split's package")


@pytest.mark.parametrize("make", [package, module])
def test_importing_does_no_harm_and_a_check_names_what_hides(tmp_path, make):
    hiding = make(tmp_path)
    program = (
        f"from fl_split import clash; clash.{{}}; import {hiding.stem} as own; assert own.MINE"
    )
    assert python(tmp_path, "-c", program.format("NAMES")).returncode == 0
    done = python(tmp_path, "-c", program.format("check()"))
    assert f"ClashError: {str(hiding)!r} hides" in done.stderr.splitlines()[-1]


def test_what_comes_earlier_on_pythonpath_hides_too(tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "empty").mkdir()
    hiding = package(tmp_path / "project")
    done = python(tmp_path / "empty", "-m", "fl_split", "configs", path=[hiding.parent])
    assert done.returncode == 1 and f"error: {str(hiding)!r} hides" in done.stderr
    program = "from fl_split.__main__ import main; main()"
    safe = f"import sys; sys.path.append({str(hiding.parent)!r}); {program}"
    assert python(tmp_path / "empty", "-c", safe, "configs").returncode == 0


def test_a_folder_that_is_no_package_hides_nothing(tmp_path):
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "notes.txt").write_text("mine")
    check_folder(tmp_path)
    assert python(tmp_path, "-m", "fl_split", "list", "adc").returncode == 0


def test_ours_are_ours_in_a_checkout_and_in_a_copy(tmp_path):
    """As `flwr run` has one, whose copies lie beside each other."""
    check()
    check_folder(ROOT)
    for name in ("fl_split", "simulations", "strategies"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "fl_split" / "clash.py").write_bytes((ROOT / "fl_split" / "clash.py").read_bytes())
    program = "from fl_split import clash; clash.check(); print(clash.HOME)"
    assert python(tmp_path, "-c", program).stdout.strip() == str(tmp_path.resolve())
    with pytest.raises(ClashError, match="hides fl-split's package 'strategies'"):
        check_folder(tmp_path)


@pytest.mark.parametrize("make", [package, module])
def test_workers_that_would_find_others_are_not_started(tmp_path, monkeypatch, make):
    """Ray lets its workers look into the present folder first, wherever the command is."""
    from simulations.engines.local_grid import EngineError
    from simulations.engines.ray_engine import Ray

    hiding = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    expected = pytest.raises(EngineError, match=f"'{hiding}' hides .* or take engine=inline")
    with expected, Ray(workers=1).session(None):
        pass
