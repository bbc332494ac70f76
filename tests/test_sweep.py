"""Grids of experiments: how they are read, run, stopped and taken up again."""

import itertools
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from fl_split.spec_errors import SpecError
from simulations.cli import main as cli
from simulations.runs.experiment import Experiment
from simulations.runs.lock import alone
from simulations.runs.setup import prepare
from simulations.studies.cells import Cell, check_others, study_frame
from simulations.studies.cost import Estimator
from simulations.studies.processes import CellProcesses, Memory, RunningCell
from simulations.studies.study import cells_that_lost_clients, unlike_cpus
from simulations.studies.sweep import cells, read_grid, read_values, sweep_table
from strategies import STRATEGIES

ROOT = Path(__file__).parents[1]
TINY = {  # as in conftest.py, which cannot be imported
    "clients": 6,
    "rounds": 2,
    "model": "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)",
    "cut": 1,
    "batch_size": 64,
}
CONFIG = "".join(f"{key} = {value!r}\n" for key, value in TINY.items())


@pytest.fixture
def config(tmp_path):
    (tmp_path / "c.toml").write_text(CONFIG)
    return tmp_path / "c.toml"


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["sweep", *map(str, arguments)])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", [1]),
        ("0..3", [0, 1, 2, 3]),
        ("0..1,7", [0, 1, 7]),
        ("[0, 5]", [0, 5]),
        ("0.1,1e3", [0.1, 1000.0]),
        ("parallel,sflv2(order='random', phi=1)", ["parallel", "sflv2(order='random', phi=1)"]),
        ("size(partition_sizes=[1, 2]),iid", ["size(partition_sizes=[1, 2])", "iid"]),
        ("adc(0.4) | uniform(bits=4), topk(0.1)", ["adc(0.4) | uniform(bits=4)", "topk(0.1)"]),
        ("hub(name='a),b'),digits", ["hub(name='a),b')", "digits"]),
    ],
)
def test_values_are_split_at_commas_outside_brackets_and_quotes(text, values):
    assert read_values("key", text) == values


@pytest.mark.parametrize("text", ["", "1,,2", "3..1", "a,"])
def test_values_that_are_none_are_refused(text):
    with pytest.raises(SpecError, match="key: "):
        read_values("key", text)


def test_the_command_line_replaces_entries_of_the_file():
    grid = read_grid({"seed": [0, 1, 2], "codec": "identity,fp16", "cut": 1}, ["seed=5", "cut=1,2"])
    assert grid == {"seed": [5], "codec": ["identity", "fp16"], "cut": [1, 2]}


def names(base=None, **grid):
    return [cell.name for cell in cells(base or {}, grid)]


def test_cells_are_named_after_what_differs_in_an_order_of_their_own():
    grid = {
        "seed": [0, 1],
        "partition": ["dirichlet(alpha=0.3)"],
        "codec": ["adc(ratio=0.1)", "adc(0.4) | uniform(bits=4, per='channel')"],
        "strategy": ["sflv1", "parallel(average_heads=False)"],
        "batch_size": [8, 16],
    }
    found = names(**grid)
    assert len(found) == len(set(found)) == 16
    assert found[0] == "sflv1-adc-0.1-batch_size8-seed0"
    assert found[-1] == "parallel-average_heads-False-adc-0.4+uniform-4-channel-batch_size16-seed1"
    assert names(**dict(reversed(grid.items()))) == found
    assert names({"seed": 4}) == ["seed4"]
    assert all(
        cell.experiment.partition.startswith("dirichlet(alpha=0.3") for cell in cells({}, {})
    )


def test_names_leave_out_what_a_spec_has_by_default():
    grid = {"codec": ["adc(0.1, split='sqrt')", "identity()"], "strategy": ["sflv2", "sflv1()"]}
    assert names(**grid)[0] == "sflv2-adc-0.1-seed0"
    assert names(head_optimizer=["sgd(lr=1e30)", "adam()"])[0] == "head_optimizer-sgd-1e30-seed0"


def test_names_that_would_be_the_same_or_too_long_end_in_a_digest():
    alike = {"partition": ["dirichlet(alpha=0.3)", "dirichlet(min_partition_size=0.3)"]}
    twins = names(codec=["splitfc(keep=0.5)", "splitfc(0.5, bits=2)"], **alike)
    assert len(set(twins)) == 4
    paths = [f"local(path='/{'x' * 300}/{end}')" for end in "ab"]
    long = names(dataset=paths)
    assert len(set(long)) == 2 and all(len(name) < 200 for name in long)
    assert long == names(dataset=paths)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"codec": ["adc(0.1)", "adc(ratio=0.1)"]}, "same experiment"),
        ({"codec": ["identity", "adk(0.1)"], "seed": [3]}, "adk-0.1-seed3: .*did you mean 'adc'"),
        ({"clients": [5, "x"]}, "clientsx-seed0: clients"),
    ],
)
def test_grids_that_make_no_sense_are_refused_by_cell(grid, message):
    with pytest.raises(SpecError, match=message):
        cells({}, grid)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["engine=ray,inline"], "engine does not change a result"),
        (["sed=0..3"], "did you mean 'seed'?"),
        (["codec=identity,adk"], "codec: unknown name 'adk'; did you mean 'adc'?"),
        (["cut=1,9"], "cut9-seed0: cut must be in"),
        (["seed"], "expected key=value"),
    ],
)
def test_bad_sweeps_are_refused_at_the_door(config, arguments, message):
    out = config.parent / "out"
    result = invoke(config, *arguments, "--out", out)
    assert result.exit_code == 2 and message in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    "changes",
    [
        *({"strategy": f"{name}()"} for name in STRATEGIES),
        {"strategy": "parallel(average_heads=False)"},
        {"downlink": "fp16()", "local_epochs": 2, "batch_size": 50},
        {"local_steps": 7, "fraction": 0.5, "rounds": 3},
        {"codec": "c3sl(factor=4)"},
    ],
    ids=str,
)
def test_the_estimate_is_what_a_run_then_reports(simulate, changes):
    outcome = simulate(**changes)
    cost = Estimator()(prepare(Experiment.from_dict(outcome.summary["experiment"])))
    found = outcome.summary
    assert (cost.steps, cost.samples) == (found["client_steps"], found["samples"])
    assert cost.payload_bytes == found["payload_bytes_up"] + found["payload_bytes_down"]
    assert cost.head_bytes == found["head_bytes_up"] + found["head_bytes_down"]
    assert cost.client_flops == found["client_flops"]
    assert 0 < cost.seconds < 60


def test_a_dry_run_shows_cells_and_cost_and_runs_nothing(config):
    out = config.parent / "out"
    result = invoke(config, "codec=identity,fp16", "seed=0..1", "--dry-run", "--out", out)
    assert result.exit_code == 0, result.output
    assert "fp16-seed1" in result.output and "4 cells, 4 to run" in result.output
    setup = prepare(Experiment.from_dict(TINY))
    assert f" {Estimator()(setup).steps} " in result.output
    assert torch.get_num_threads() == 1
    assert not out.exists()


def test_codecs_multiply_only_strategies_that_send_smashed_data():
    grid = {
        "strategy": ["parallel()", "fedavg()"],
        "codec": ["identity()", "fp16()"],
        "seed": [0, 1],
    }
    names = [cell.name for cell in cells({}, grid)]
    assert names == [
        "parallel-identity-seed0", "parallel-identity-seed1", "parallel-fp16-seed0",
        "parallel-fp16-seed1", "fedavg-identity-seed0", "fedavg-identity-seed1",
    ]  # fmt: skip


def test_a_folder_of_another_study_is_refused_and_more_seeds_are_not(tmp_path):
    base = {**TINY, "out": ""}
    cell = tmp_path / "seed7"
    cell.mkdir()
    (cell / "experiment.toml").write_text(Experiment.from_dict({**base, "seed": 7}).to_toml())
    check_others(tmp_path, base, ["seed"])
    with pytest.raises(SpecError, match="seed7' is of another study, with clients=6"):
        check_others(tmp_path, {**base, "clients": 5}, ["seed"])
    with pytest.raises(SpecError, match="seed=7"):
        check_others(tmp_path, base, ["codec"])


def test_another_cell_waits_for_memory(tmp_path):
    pids = itertools.count(1)

    def start(cell):
        return RunningCell(cell, tmp_path, SimpleNamespace(pid=next(pids), is_alive=lambda: True))

    for free, expected in ((0, 1), (184, 1), (186, 2), (10_000, 4)):
        # One runs, holds 40 of 100 and will take 60 more; the next must find 125 beside that.
        memory = Memory(resident=lambda pid: 40, available=lambda free=free: free)
        several = CellProcesses(cells({}, {"seed": [*range(9)]}), 4, 100, start, memory)
        several.step()
        assert len(several.running) == expected


def test_a_cell_that_cannot_be_started_fails_alone():
    def start(cell):
        if cell.experiment.seed == 0:
            raise OSError("disk full")
        return RunningCell(cell, Path(), SimpleNamespace(pid=1, is_alive=lambda: True))

    several = CellProcesses(cells({}, {"seed": [0, 1]}), 2, 0, start)
    assert several.step()
    assert several.failed == {"seed0": "disk full"}
    assert several.status == {"seed0": "failed", "seed1": "running"}


def test_two_writers_cannot_share_a_folder(tmp_path):
    with (
        alone(tmp_path),
        pytest.raises(ValueError, match="another process is writing"),
        alone(tmp_path),
    ):
        pass
    with alone(tmp_path), alone(tmp_path, "other"):
        pass


def test_the_table_is_over_seeds(tmp_path):
    found = cells({}, {"codec": ["identity", "fp16"], "seed": [0, 1]})
    rows = study_frame(found, tmp_path, dict.fromkeys((cell.name for cell in found), "complete"))
    rows["final_accuracy"] = [0.5, 0.7, 0.9, None]
    rows.loc[3, "status"] = "failed"
    for column in ("payload_bytes_up", "payload_bytes_down", "head_bytes_up", "head_bytes_down"):
        rows[column] = 1e6
    first = shown(rows.assign(cpu_seconds=3))
    assert first["seeds"] == ["2", "1"] and "client %" not in first
    assert first["codec"] == ["identity", "fp16"]
    assert first["final %"] == ["60.0 ± 14.1", "90.0"]
    assert first["payload MB"] == ["2.0 ± 0.0", "2.0"]
    rows["client_accuracy"] = [0.2, 0.4, None, None]
    assert shown(rows.assign(cpu_seconds=3))["client %"] == ["30.0 ± 14.1", "-"]


def shown(rows):
    """Cells of the table by title, as they are printed where there is room."""
    return {
        column.header: [getattr(cell, "plain", None) or cell.text for cell in column.cells]
        for column in sweep_table(rows, 200).columns
    }


def test_cells_that_lost_clients_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").write_text(json.dumps({"status": "complete", "dropped": 2}))
    found = [Cell(name, {"seed": seed}, Experiment()) for seed, name in enumerate("ab")]
    rows = study_frame(found, tmp_path, {"a": "complete"})
    told = cells_that_lost_clients(rows, tmp_path)
    assert "1 of 2 cells lost clients in some round (a;" in told and f"--out {tmp_path}" in told
    assert cells_that_lost_clients(rows[rows["cell"] == "b"], tmp_path) == ""


def test_a_study_on_unlike_cpus_says_so_once(tmp_path):
    found = [Cell(name, {"seed": seed}, Experiment()) for seed, name in enumerate("abcd")]
    cpus = {"a": {"cpu": "x86_64 AVX2"}, "b": {"cpu": "x86_64 AVX2"}, "c": {}}  # d never began
    for name, machine in cpus.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(
            json.dumps({"status": "complete", "machine": machine})
        )
    assert unlike_cpus(found, tmp_path) == ""
    (tmp_path / "c" / "summary.json").write_text(
        json.dumps({"status": "complete", "machine": {"cpu": "x86_64 AVX512"}})
    )
    told = unlike_cpus(found, tmp_path)
    assert told.startswith("x86_64 AVX2, x86_64 AVX512: on unlike CPUs")


def test_a_folder_of_other_files_is_refused_and_left_alone(config):
    notes = config.parent / "notes"
    notes.mkdir()
    (notes / "a.md").write_text("mine")
    result = invoke(config, "seed=0..1", "--out", notes)
    assert result.exit_code == 2 and "holds no run but other files (a.md)" in result.stderr
    assert [path.name for path in notes.iterdir()] == ["a.md"]
    (notes / ".sweep.lock").touch()  # as a sweep that has just begun
    assert invoke(config, "seed=0..1", "--out", notes, "--dry-run").exit_code == 0


@pytest.mark.slow
def test_a_failed_cell_stops_no_other_and_finished_ones_are_kept(config):
    """That whose head is thrown to infinity loses all its clients; one after it waits, one runs."""
    out = config.parent / "out"
    grid = [config, "head_optimizer=sgd(lr=1e30),sgd(lr=0.01),adam()", "seed=1", "--out", out]
    result = invoke(*grid, "--jobs", "2")
    assert result.exit_code == 1
    bad, *good = [f"head_optimizer-{name}-seed1" for name in ("sgd-1e30", "sgd-0.01", "adam")]
    rows = pd.read_csv(out / "sweep.csv").set_index("cell")
    assert rows.loc[[bad, *good], "status"].tolist() == ["failed", "complete", "complete"]
    assert f"{bad}: round" in result.stderr
    assert "clients were dropped" in (out / bad / "log.txt").read_text()
    for name in good:
        summary = json.loads((out / name / "summary.json").read_text())
        assert rows.loc[name, "final_accuracy"] == summary["final_accuracy"]
        assert rows.loc[name, "seed"] == summary["seed"] == 1
    times = [(out / name / "rounds.csv").stat().st_mtime_ns for name in good]
    again = invoke(*grid)
    assert again.exit_code == 1 and "2 of 3 cells are finished already" in again.output
    assert times == [(out / name / "rounds.csv").stat().st_mtime_ns for name in good]
    other = invoke(*grid, "batch_size=32")
    assert other.exit_code == 2 and "of another study, with batch_size=64" in other.stderr


def wait_until(condition, seconds=300):
    for _ in range(seconds * 10):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


@pytest.mark.slow
def test_a_stopped_or_killed_study_goes_on_and_ends_with_the_same_bits(config, reference):
    out, changes = config.parent / "out", {"checkpoint_every": 2, "local_steps": 4}
    blows = [(signal.SIGINT, 2), (signal.SIGKILL, 4)]
    command = ["sweep", str(config), "--out", str(out)]
    command += [*(f"{key}={value}" for key, value in changes.items()), "seed=0", "rounds=9"]
    rows = out / "seed0" / "rounds.csv"

    def done(path):
        return len(path.read_text().splitlines()) - 1 if path.exists() else 0

    for blow, rounds in blows:
        process = subprocess.Popen(
            [sys.executable, "-m", "simulations.cli.main", *command],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            wait_until(lambda rounds=rounds: done(rows) > rounds)
            process.send_signal(blow)
            said = process.communicate(timeout=300)[1]
        finally:
            process.kill()
        time.sleep(0.2)
        left = done(rows)
        time.sleep(0.8)
        assert done(rows) == left < 9  # nobody goes on
        codes = {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}
        assert process.returncode == codes[blow]
        assert ("to go on" in said) == (blow != signal.SIGKILL) and "Traceback" not in said
    last = CliRunner().invoke(cli.app, command)
    assert last.exit_code == 0, last.output
    log = " ".join((out / "seed0" / "log.txt").read_text().split())
    assert log.count("of 9 rounds done") == len(blows)
    undisturbed = reference(**changes, rounds=9, seed=0)
    assert undisturbed.equals(replace(undisturbed, folder=out / "seed0"))
