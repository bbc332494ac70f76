"""A look at runs from outside, whatever state their folders are in."""

import os
import time

import pytest
from typer.testing import CliRunner

from simulations import cli
from simulations.watch import Pace, Snapshot, headline, is_over, look, look_below, sparkline


def watch(folder):
    """Outside a terminal, as here, one look is all there is."""
    return CliRunner().invoke(cli.app, ["watch", str(folder)])


def test_a_finished_run_is_shown_with_its_numbers(simulate):
    outcome = simulate(rounds=2)
    (seen,) = look_below(outcome.folder)
    assert (seen.status, seen.rounds, seen.total) == ("complete", 2, 2)
    assert seen.accuracies == outcome.rounds["accuracy"].tolist()
    kinds = ("payload_bytes", "head_bytes")
    sent = sum(outcome.summary[f"{kind}_{way}"] for kind in kinds for way in ("up", "down"))
    assert seen.sent == sent
    shown = watch(outcome.folder)
    assert shown.exit_code == 0
    assert "2/2" in shown.output and "1 complete" in shown.output
    assert f"{100 * seen.accuracies[-1]:.1f} %" in shown.output


def test_a_half_written_folder_is_a_running_run(simulate):
    folder = simulate(rounds=3).folder
    (folder / "summary.json").unlink()
    text = (folder / "rounds.csv").read_text()
    (folder / "rounds.csv").write_text(text[: text.rfind(",")])  # the last row is torn
    seen = look(folder, "half")
    assert (seen.status, seen.rounds, seen.total) == ("running", 2, 3)
    assert not is_over([seen])
    assert "2/3" in watch(folder.parent).output
    assert "2/3" in CliRunner().invoke(cli.app, ["watch", str(folder), "--once"]).output
    (folder / "rounds.csv").unlink()
    assert look(folder, "begun").rounds == 0
    assert watch(folder).exit_code == 0


def test_a_run_that_was_stopped_and_goes_on_is_running(simulate):
    folder = simulate(rounds=1).folder
    assert look(folder, "run").status == "complete"
    later = time.time() + 5
    os.utime(folder / "rounds.csv", (later, later))
    assert look(folder, "run").status == "running"


def test_a_sweep_shows_cells_that_have_not_begun(simulate):
    folder = simulate(rounds=1).folder
    plan = f"cell,seed,status\n{folder.name},0,complete\nlater,1,waiting\nbad,2,failed\n"
    (folder.parent / "sweep.csv").write_text(plan)
    seen = look_below(folder.parent)
    assert [run.status for run in seen] == ["complete", "waiting", "failed"]
    assert headline(seen) == "1 failed, 1 complete, 1 waiting"
    assert not is_over(seen) and is_over([seen[0], seen[2]])
    assert "later" in watch(folder.parent).output


def test_a_folder_without_runs_is_refused(tmp_path):
    result = watch(tmp_path)
    assert result.exit_code == 2 and "no runs" in result.stderr


def test_a_curve_is_as_wide_as_its_rounds_at_most():
    assert sparkline([]) == ""
    assert sparkline([0, 0.5, 1]) == "▁▅█"
    assert sparkline([0.0] * 99 + [1.0], width=4) == "▁▁▁█"


def test_the_rest_takes_as_long_as_rounds_took(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    half = Snapshot("a", "running", 10, [0.1] * 5)
    pace = Pace([half])
    assert pace.seconds_left([half], 20) is None
    clock[0] = 106.0
    later = [Snapshot("a", "running", 10, [0.1] * 7), Snapshot("b", "complete", 10, [0.1])]
    # 12 rounds in 6 seconds: that b's budget ended it early makes it no less done.
    assert pace.seconds_left(later, 20) == pytest.approx(3 * 0.5)
