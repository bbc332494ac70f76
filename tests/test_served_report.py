"""What `fl-split report` shows of runs that `fl-split infer` has served."""

import shutil

import pytest
from typer.testing import CliRunner

from simulations.cli.main import app

TINY = {"tokens": "norm(rate=0.25)", "exits": "plain()", "cut": 2, "clients": 2, "rounds": 1}


@pytest.fixture
def reported(reference, tmp_path):
    """Serve a copy of a tiny run by the command; give the text of its report."""
    folder = shutil.copytree(reference(**TINY, holdout=0.1).folder, tmp_path / "run")

    def page(*words):
        served = CliRunner().invoke(app, ["infer", str(folder), *words])
        assert served.exit_code == 0, served.output
        file = tmp_path / "report.md"
        shown = CliRunner().invoke(app, ["report", str(folder), "-o", str(file)])
        assert shown.exit_code == 0, shown.output
        return file.read_text()

    return page


def test_a_report_shows_the_patches_that_a_run_has_kept(reported):
    assert "Patches that go on" in reported()
