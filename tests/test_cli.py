"""The command line as a user meets it: a subprocess, its output and its exit code."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from simulations import cli

ROOT = Path(__file__).parents[1]
QUICK = "configs/quickstart.toml"
TINY = [
    "clients=4", "rounds=2", "fraction=1.0", "engine=inline", "batch_size=128", "local_steps=1",
    "model=vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)", "cut=1",
]  # fmt: skip


def fl_split(*arguments, check=None):
    command = [sys.executable, "-m", "simulations.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def test_run_ends_with_a_table_and_the_place_of_the_results(tmp_path):
    done = fl_split("run", QUICK, *TINY, "strategy=fedavg", "--out", tmp_path / "a", check=0)
    assert "round 2/2" in done.stdout and "accuracy" in done.stdout and "MB" in done.stdout
    assert "Accuracy against bytes" in done.stdout
    assert str(tmp_path / "a") in done.stdout.replace("\n", "")
    assert done.stderr == ""
    assert len(pd.read_csv(tmp_path / "a" / "rounds.csv")) == 2
    again = fl_split("run", QUICK, *TINY, "--out", tmp_path / "a", check=2)
    assert "already holds a run" in again.stderr


def test_compare_runs_every_row_and_writes_one_table(tmp_path):
    shared = [text for text in TINY if not text.startswith("local")]
    config = "configs/splitfed_baselines.toml"
    fl_split("compare", config, *shared, "--out", tmp_path / "c", check=0)
    table = pd.read_csv(tmp_path / "c" / "comparison.csv").set_index("run")
    assert list(table.index) == ["parallel", "parallel-adc", "sflv1", "sflv2", "fedavg"]
    assert table["client_steps"].nunique() == 1
    assert table.loc["sflv1", "final_accuracy"] == table.loc["fedavg", "final_accuracy"]
    assert table.loc["parallel-adc", "payload_bytes_up"] < table.loc["parallel", "payload_bytes_up"]
    assert (tmp_path / "c" / "comparison.svg").exists()
    again = fl_split("run", QUICK, "--out", tmp_path / "c", check=2)
    assert "already holds a run" in again.stderr
    assert (tmp_path / "c" / "sflv2" / "model.safetensors").exists()


def test_list_shows_everything_that_can_be_combined():
    shown = fl_split("list", check=0).stdout
    for name in ("adc", "sflv2", "dirichlet", "digits", "pretrained", "adamw", "ray", "clients"):
        assert name in shown


@pytest.mark.parametrize("command", [[], ["run"], ["compare"], ["list"]])
def test_help_teaches(command):
    shown = fl_split(*command, "--help", check=0).stdout
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
        (["configs/splitfed_baselines.toml"], "use: fl-split compare"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(tmp_path, arguments, message):
    done = fl_split("run", *arguments, "--out", tmp_path / "x", check=2)
    assert message in done.stderr
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
    blocked = fl_split("run", QUICK, "--out", tmp_path / "c.toml" / "sub", check=2)
    assert "is a file; give a folder" in blocked.stderr


@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=pytest.mark.slow)])
def test_ctrl_c_ends_cleanly(tmp_path, engine):
    command = [sys.executable, "-m", "simulations.cli", "run", QUICK, "rounds=1000"]
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
    for _ in range(600):
        time.sleep(0.1)
        if rows.exists() and len(rows.read_text().splitlines()) > 2:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped" in errors and "Traceback" not in errors
    finished = pd.read_csv(rows)
    assert finished["round"].tolist() == list(range(1, len(finished) + 1))
    assert (tmp_path / "x" / "summary.json").exists()
