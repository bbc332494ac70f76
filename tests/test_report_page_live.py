"""Pages of runs that go on."""

import shutil

import pytest
from typer.testing import CliRunner

from simulations.cli import main as cli
from simulations.report.live import Live
from simulations.report.page import build
from tests.test_report import write_run


def finish(folder, accuracies, **settings):
    """Let a run end that `begin` began."""
    shutil.rmtree(folder)
    write_run(folder, accuracies, **settings)


def begin(folder, accuracies, torn="", **settings):
    """Write what a run has written in its midst."""
    write_run(folder, accuracies, **settings)
    (folder / "summary.json").unlink()
    with (folder / "rounds.csv").open("a") as file:
        file.write(torn)


def test_runs_that_go_on_count_so_far_where_no_seed_is_complete(tmp_path):
    write_run(tmp_path / "a0", [0.1, 0.9], codec="identity", seed=0, rounds=2)
    begin(tmp_path / "a1", [0.2], codec="identity", seed=1, rounds=2)
    begin(tmp_path / "b0", [0.3], codec="fp16", seed=0, rounds=2)
    begin(tmp_path / "b1", [0.3, 0.4], torn="3,0.9", codec="fp16", seed=1, rounds=2)
    live = build([tmp_path], live=Live("Live."))
    results = live.tables[0].data.set_index("configuration")
    assert list(results["seeds"]) == [1, 1]
    assert results.loc["fp16", "final accuracy, %"] == pytest.approx(40)  # not of the torn row
    assert results.loc["fp16", "all sent, MB"] == pytest.approx(2 * (2 * 5 + 2 * 1))
    assert live.facts["so far only"] == f"{tmp_path.name}/b1 (round 2 of 2)"
    assert [one.label for one in build([tmp_path]).collection.configurations] == [
        "parallel, identity"
    ]


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """Follow one run, while `steps` happen one after the other."""

    def follow(*steps):
        queue = [*steps]
        monkeypatch.setattr("time.sleep", lambda seconds: queue.pop(0)())
        target = tmp_path / "page.html"
        command = ["report", str(tmp_path / "runs"), "-o", str(target), "--follow", "--every", "7"]
        done = CliRunner().invoke(cli.app, command)
        return done, target

    return follow


def test_a_page_is_made_anew_until_all_runs_have_ended(tmp_path, followed):
    run, target = tmp_path / "runs" / "a", tmp_path / "page.html"
    begin(run, [], rounds=3)
    seen = []

    def look():
        seen.append(target.read_text() if target.exists() else "")

    def go_on():
        look()
        finish(run, [0.1], rounds=3)
        (run / "summary.json").unlink()

    def end():
        look()
        finish(run, [0.1, 0.2, 0.3], rounds=3)

    done, _ = followed(go_on, end)
    assert done.exit_code == 0, done.output
    assert "waiting: no run is complete" in done.output and "following: " in done.output
    assert seen[0] == "" and "Live, as of " in seen[1] and "1 running" in seen[1]
    assert '<meta http-equiv="refresh" content="7">' in seen[1] and "1/3" in seen[1]
    text = target.read_text()
    assert "Live, as of" not in text and "refresh" not in text.split("<style>")[0]
    assert '<td data-order="30.0">30.0</td>' in text  # final accuracy, %


def test_stopping_to_follow_leaves_a_page_that_does_not_reload(tmp_path, followed):
    begin(tmp_path / "runs" / "a", [0.1], rounds=3)

    def stop():
        raise KeyboardInterrupt

    done, target = followed(stop)
    assert done.exit_code == 130 and "stopped; following: " in done.output
    text = target.read_text()
    assert "Not followed to the end: 1 running." in text and 'id="live"' not in text
    assert "refresh" not in text.split("<style>")[0]


def test_only_html_can_be_followed(tmp_path):
    begin(tmp_path / "runs" / "a", [0.1])
    command = ["report", str(tmp_path / "runs"), "-o", str(tmp_path / "r.md"), "--follow"]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 2 and "--follow writes HTML" in done.output
