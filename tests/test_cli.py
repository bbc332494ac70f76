"""The command line as a user meets it: a subprocess, its output and its exit code."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from simulations.cli import main as cli
from simulations.cli.list_command import KEYS
from simulations.runs.parts import SPEC_TABLES

ROOT = Path(__file__).parents[1]
QUICK = "configs/quickstart.toml"
TINY = [
    "clients=4", "rounds=2", "fraction=1.0", "engine=inline", "batch_size=128", "local_steps=1",
    "model=vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)", "cut=1",
]  # fmt: skip


TERMINAL = {**os.environ, "TERM": "xterm"}


def fl_split(*arguments, check):
    """Start a process, for what only one can show: all that it says, and its exit code."""
    command = [sys.executable, "-m", "simulations.cli.main", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == check, done.stdout + done.stderr
    return done


def invoke(*arguments, check):
    done = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert done.exit_code == check, done.output
    return done


def test_run_ends_with_a_table_and_the_place_of_the_results(tmp_path):
    done = fl_split("run", QUICK, *TINY, "strategy=fedavg", "--out", tmp_path / "a", check=0)
    assert "round 2/2" in done.stdout and "accuracy" in done.stdout and "MB" in done.stdout
    assert "Accuracy against bytes" in done.stdout
    assert str(tmp_path / "a") in done.stdout.replace("\n", "")
    assert done.stderr == ""
    assert len(pd.read_csv(tmp_path / "a" / "rounds.csv")) == 2
    again = invoke("run", ROOT / QUICK, *TINY, "--out", tmp_path / "a", check=2)
    assert "already holds a run" in again.stderr


def test_compare_runs_every_row_and_writes_one_table(tmp_path):
    shared = [text for text in TINY if not text.startswith("local")]
    config = ROOT / "configs/splitfed_baselines.toml"
    invoke("compare", config, *shared, "--out", tmp_path / "c", check=0)
    table = pd.read_csv(tmp_path / "c" / "comparison.csv").set_index("run")
    assert list(table.index) == ["parallel", "parallel-adc", "sflv1", "sflv2", "fedavg"]
    assert table["client_steps"].nunique() == 1
    assert table.loc["sflv1", "final_accuracy"] == table.loc["fedavg", "final_accuracy"]
    assert table.loc["parallel-adc", "payload_bytes_up"] < table.loc["parallel", "payload_bytes_up"]
    assert (tmp_path / "c" / "comparison.svg").exists()
    again = invoke("run", ROOT / QUICK, "--out", tmp_path / "c", check=2)
    assert "already holds a run" in again.stderr
    assert (tmp_path / "c" / "sflv2" / "model.safetensors").exists()


def test_accuracy_of_clients_is_shown_beside_that_of_the_test_split(tmp_path):
    """Both as files say; and without samples to show it on, a line says what accuracy means."""
    own = "parallel(average_heads=False)"
    command = ["run", QUICK, *TINY, f"strategy={own}", "--out"]
    shown = CliRunner().invoke(cli.app, [*command, str(tmp_path / "a"), "holdout=0.2"]).output
    shards = pd.read_csv(tmp_path / "a" / "shards.csv")
    mean = shards[shards["round"] == 2]["accuracy"].mean()
    assert f"client {100 * mean:.1f} %" in shown and "client %" in shown
    assert "holdout=0.2 shows" not in shown and "is used up" not in shown
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["client_accuracy"] == pytest.approx(mean)
    (tmp_path / "c.toml").write_text(
        "[[compare]]\nstrategy = 'local'\n[[compare]]\nstrategy = 'sflv3'\nrounds = 1\n"
    )
    tiny = [text for text in TINY if not text.startswith("rounds")]
    command = ["compare", str(tmp_path / "c.toml"), *tiny, "budget=rounds(1)", "--out"]
    shown = CliRunner().invoke(cli.app, [*command, str(tmp_path / "b")]).output
    assert shown.count("holdout=0.2 shows accuracy on their own samples") == 1
    assert "client %" not in shown
    assert "run-1: ended after round 1 of 20: rounds(limit=1) is used up" in shown
    assert "run-2: ended" not in shown


def test_runs_with_a_shared_model_need_no_explanation(tmp_path):
    command = ["run", QUICK, *TINY, "--out", str(tmp_path / "a")]
    assert "holdout" not in CliRunner().invoke(cli.app, command).output


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for command in ("run", "compare"):
        arguments = [command, str(ROOT / QUICK), "--out", str(tmp_path)]
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 2
        assert "holds no run but other files (notes.txt)" in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("category", ["codecs", "codec", "downlink"])
def test_list_shows_one_table_by_its_name_or_key(category):
    shown = CliRunner().invoke(cli.app, ["list", category]).output
    assert "adc" in shown and "topk" in shown
    assert "sflv2" not in shown and "dirichlet" not in shown


def test_every_category_can_be_listed_alone():
    whole = CliRunner().invoke(cli.app, ["list"]).output
    parts = [CliRunner().invoke(cli.app, ["list", name]).output for name in [*KEYS, "keys"]]
    assert "".join(parts) == whole
    also = {"down_channel", "downlink", "tail_optimizer"}
    assert {*KEYS.values()} | also == {*SPEC_TABLES, "cut", "policy"}
    unknown = CliRunner().invoke(cli.app, ["list", "modles"])
    assert unknown.exit_code == 2 and "did you mean 'models'?" in unknown.stderr


def test_who_waits_at_a_terminal_is_told_so():
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "simulations.cli.main", "run", QUICK, "codec=adc(ratio=2)"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=theirs, env=TERMINAL)
    os.close(theirs)
    seen = b""
    with suppress(OSError):  # the other end is closed
        while part := os.read(ours, 4096):
            seen += part
    os.close(ours)
    assert process.wait(timeout=300) == 2
    assert b"loading ..." in seen and b"less than or equal to 1" in seen


def test_list_shows_everything_that_can_be_combined():
    shown = CliRunner().invoke(cli.app, ["list"]).output
    for name in ("adc", "sflv2", "dirichlet", "digits", "pretrained", "adamw", "ray", "clients"):
        assert name in shown


@pytest.mark.parametrize("command", [[], ["run"], ["compare"], ["list"]])
def test_help_teaches(command):
    shown = invoke(*command, "--help", check=0).stdout
    assert "Usage" in shown and len(shown.splitlines()) > 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["configs/nothing.toml"], "no configuration file"),
        ([QUICK, "codec=acd"], "did you mean 'adc'?"),
        ([QUICK, "cut=9"], "cut must be in 1..3"),
        ([QUICK, "rounds"], "expected key=value"),
        ([QUICK, "clients=100000"], "cannot share"),
        ([QUICK, "codec=[/a]"], "'[/a]' is not of the form"),
        ([QUICK + "/x"], "no configuration file"),
        (["clients=5", QUICK], "the configuration comes first, then keys"),
        (["configs"], "is a folder or a device; give a configuration file"),
        ([QUICK, "clients=5", "clients=6"], "clients is given twice"),
        ([QUICK, 'cut="3"'], "a number of stages"),
        (["configs/splitfed_baselines.toml"], "use: fl-split compare"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(tmp_path, monkeypatch, arguments, message):
    """In this process: that a new one says nothing else is tested with folders, below."""
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(cli.app, ["run", *arguments, "--out", str(tmp_path / "x")])
    assert done.exit_code == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("[[compare]]\nname = '../x'\n", "usable as a folder's"),
        ("[[compare]]\nname = '..'\n", "usable as a folder's"),
        ("[[compare]]\nname = ''\n", "usable as a folder's"),
        ("[[compare]]\nname = 'a'\n[[compare]]\nname = 'a'\n", "two runs are called 'a'"),
        ("[[compare]]\nengine = 'ray'\n[[compare]]\nengine = 'inline'\n", "one engine"),
        ("[[compare]]\ncut = 77\n", "run-1: cut must be in"),
    ],
)
def test_bad_comparisons_are_refused_before_training(tmp_path, rows, message):
    (tmp_path / "c.toml").write_text(rows)
    command = ["compare", str(tmp_path / "c.toml"), "--out", str(tmp_path / "x")]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 2 and message in result.stderr


def test_folders_that_cannot_be_written_to_are_refused(tmp_path):
    (tmp_path / "c.toml").touch()
    nowhere = fl_split("run", QUICK, "--out", "/proc/nowhere", check=2)
    assert len(nowhere.stderr.strip().splitlines()) == 1
    blocked = invoke("run", ROOT / QUICK, "--out", tmp_path / "c.toml" / "sub", check=2)
    assert "is a file; give a folder" in blocked.stderr


@pytest.mark.parametrize(
    ("engine", "blow", "code"),
    [
        ("inline", signal.SIGTERM, 143),
        pytest.param("ray(workers=1)", signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_and_sigterm_end_cleanly(tmp_path, engine, blow, code):
    command = [sys.executable, "-m", "simulations.cli.main", "run", QUICK, "rounds=1000"]
    command += ["--engine", engine, "--out", str(tmp_path / "x")]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores interrupts, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    rows = tmp_path / "x" / "rounds.csv"
    try:
        for _ in range(3000):  # a busy machine takes minutes to start Ray
            time.sleep(0.1)
            if rows.exists() and len(rows.read_text().splitlines()) > 2:
                break
        process.send_signal(blow)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == code
    assert "stopped" in errors and "Traceback" not in errors
    finished = pd.read_csv(rows)
    assert finished["round"].tolist() == list(range(1, len(finished) + 1))
    assert json.loads((tmp_path / "x" / "summary.json").read_text())["status"] == "interrupted"
