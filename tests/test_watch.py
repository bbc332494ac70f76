"""A look at runs from outside, whatever state their folders are in."""

import json
import os
import socket
import subprocess
import time
from io import StringIO

import pytest
from filelock import FileLock
from rich.console import Console
from typer.testing import CliRunner

from simulations.cli import main as cli
from simulations.report.text_table import shortened, text_table
from simulations.runs.lock import alone
from simulations.studies.watch import (
    Pace,
    Snapshot,
    headline,
    is_over,
    look_below,
    read_snapshot,
    snapshot_table,
    sparkline,
)


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
    seen = read_snapshot(folder, "half")
    assert (seen.status, seen.rounds, seen.total) == ("running", 2, 3)
    assert not is_over([seen])
    assert "2/3" in watch(folder.parent).output
    assert "2/3" in CliRunner().invoke(cli.app, ["watch", str(folder), "--once"]).output
    (folder / "rounds.csv").unlink()
    assert read_snapshot(folder, "begun").rounds == 0
    assert watch(folder).exit_code == 0


def test_a_run_that_was_stopped_and_goes_on_is_running(simulate):
    folder = simulate(rounds=1).folder
    assert read_snapshot(folder, "run").status == "complete"
    later = time.time() + 5
    os.utime(folder / "rounds.csv", (later, later))
    assert read_snapshot(folder, "run").status == "running"


@pytest.fixture
def ended():
    """The number of a process that is no more."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_a_run_whose_process_is_gone_is_dead_and_says_how_to_go_on(simulate, ended):
    folder = simulate(rounds=1).folder
    (folder / "summary.json").unlink()
    with alone(folder):
        assert read_snapshot(folder, "run").status == "running"
    holder = folder / ".run.lock.holder"
    mine = json.loads(holder.read_text())
    assert mine["pid"] == os.getpid() and mine["host"] == socket.gethostname()
    for other in ({"pid": ended}, {"began": mine["began"] - 99}):  # its number is used again
        holder.write_text(json.dumps(mine | other))
        seen = read_snapshot(folder, "run")
        assert seen.status == "dead" and is_over([seen]) and "left no checkpoint" in seen.remark
    (folder / "checkpoint.safetensors").touch()
    assert f"fl-split resume {folder}" in " ".join(watch(folder).output.split("\n"))
    holder.write_text(json.dumps(mine | {"pid": ended, "host": "another"}))
    assert read_snapshot(folder, "run").status == "running"  # as far as can be seen from here
    holder.write_text(json.dumps(mine | {"pid": ended}))
    with FileLock(folder / ".run.lock"):  # by a process whose number means nothing here
        assert read_snapshot(folder, "run").status == "running"


def test_cells_of_a_dead_study_are_not_waited_for(simulate, ended):
    folder = simulate(rounds=1).folder
    study = folder.parent
    (study / "sweep.csv").write_text(f"cell,status\n{folder.name},running\nlater,waiting\n")
    (folder / "summary.json").unlink()
    mine = {"host": socket.gethostname(), "pid": ended, "began": 1.0}
    for path in (folder / ".run.lock.holder", study / ".sweep.lock.holder"):
        path.write_text(json.dumps(mine))
    seen = look_below(study)
    assert [one.status for one in seen] == ["dead", "not begun"] and is_over(seen)
    assert "the command of the study" in seen[0].remark


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


def test_the_rest_takes_as_long_as_rounds_took():
    now = 100.0
    half = Snapshot("a", "running", 10, [0.1] * 5)
    pace = Pace([half], lambda: now)
    assert pace.seconds_left([half], 20) is None
    now = 106.0
    later = [Snapshot("a", "running", 10, [0.1] * 7), Snapshot("b", "complete", 10, [0.1])]
    # 12 rounds in 6 seconds: that b's budget ended it early makes it no less done.
    assert pace.seconds_left(later, 20) == pytest.approx(3 * 0.5)


def printed(width, table):
    console = Console(width=width, record=True, file=StringIO())
    console.print(table)
    return console.export_text().splitlines()


def test_names_keep_one_line_and_their_room_on_a_narrow_terminal():
    names = ["sflv2-order-random-phi-1-adc-0.1-seed0", "sflv2-order-random-phi-1-adc-0.1-seed1"]
    seen = [Snapshot(name, "running", 80, [0.5] * 40, 12_345_678, 1.25) for name in names]
    wide = printed(130, snapshot_table(seen, 130))
    assert names[0] in wide[3] and "▅▅▅" in wide[3] and "1.25" in wide[3]
    normal = printed(80, snapshot_table(seen, 80))
    assert names[0] in normal[3] and names[1] in normal[4]
    assert "40/80" in normal[3] and "50.0 %" in normal[3] and "running" in normal[3]
    assert "▅" not in normal[3]  # curves give way first
    narrow = printed(60, snapshot_table(seen, 60))
    assert "sflv2" in narrow[3] and "…" in narrow[3] and "seed0" in narrow[3]
    assert all(len(line) <= 60 for line in narrow) and len(narrow) == len(normal)


def test_texts_are_cut_in_their_middle():
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghij", 6) == "abc…ij"
    assert shortened("abcdefghij", 1) == "…"


def test_columns_are_left_out_in_order_until_the_rest_has_room():
    rows = [["x" * 30, "first", "second", "third"]]

    def titles(width):
        found = text_table(["run", "1", "2", "3"], rows, width, spare=["3", "2"])
        return [column.header for column in found.columns]

    # Edges take 1, a column its width and 2: 1 + 32 + 7 + 8 + 7 = 55.
    assert titles(55) == ["run", "1", "2", "3"]
    assert titles(54) == titles(48) == ["run", "1", "2"]
    assert titles(47) == titles(9) == ["run", "1"]
