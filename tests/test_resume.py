"""Golden test 6: stopped after any round and resumed equals never stopped, bit for bit."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fl_split.codecs import CODECS, parse_codec
from fl_split.specs import parse
from simulations.cli import main as cli
from simulations.runs import checkpoint, provenance
from simulations.runs.checkpoint import CheckpointError
from simulations.runs.lock import alone
from strategies import STRATEGIES

PRIVATE = "parallel(average_heads=False)"
ROUNDS = 4
COUNTED = [
    "round", "accuracy", "loss", "train_loss", "samples", "client_steps", "payload_bytes_up",
    "payload_bytes_down", "head_bytes_up", "head_bytes_down", "client_flops",
    "server_flops", "drift",
]  # fmt: skip


class Stop(Exception):
    pass


def stop_after(number):
    def watch(row, result):
        if row["round"] == number:
            raise Stop

    return watch


def stopped(simulate, number, **changes):
    """Run until round `number` is over; return what is left behind."""
    left = []

    def watch(row, result):
        left.append(result)
        stop_after(number)(row, result)

    with pytest.raises(Stop):
        simulate(watch=watch, **changes)
    return left


KEPT = [
    spec
    for spec in [*STRATEGIES, PRIVATE]
    if (built := parse(spec, STRATEGIES)).keeps_models or built.trains_on_server
]
"""Something lives on from round to round beside averaged weights; test_checks.py has them all."""

LEARNT = [
    name
    for name in CODECS
    if (codec := parse_codec(name)).remembers or codec.modules(8) is not None
]
"""The same of a codec; test_checks.py has that all others draw from what they are given alone."""

CASES = [(name, "identity") for name in KEPT]
CASES += [("parallel", name) for name in (*LEARNT, "randtopk")]
CASES += [(name, "bottlenet") for name in (PRIVATE, "fedavg", "sflv1")]


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(case) for case in CASES])
def test_stopped_and_resumed_equals_never_stopped(simulate, resume, tmp_path, case):
    strategy, codec = CASES[case]
    draw = random.Random(case)
    number, every = draw.randint(1, ROUNDS - 1), draw.randint(1, 2)
    changes = {
        "strategy": strategy,
        "codec": codec,
        "rounds": ROUNDS,
        "fraction": 0.7,
        "local_steps": 2,
        "checkpoint_every": every,
        "head_optimizer": "adam(lr=0.003)",
        "tail_optimizer": draw.choice(["adam()", "sgd(lr=0.05, momentum=0.9)", "adamw()"]),
    }
    number = max(number, every)
    whole = simulate(**changes)
    stopped(simulate, number, **changes)
    half = type(whole)(tmp_path / "run2")
    assert half.summary["status"] == "failed" and len(half.rounds) == number
    resume(half)
    assert half.equals(whole)
    assert half.rounds[COUNTED].equals(whole.rounds[COUNTED])
    cpu = ["client_cpu_seconds"]
    assert half.clients.drop(columns=cpu).equals(whole.clients.drop(columns=cpu))
    assert half.summary["status"] == "complete"
    assert half.summary["client_steps"] == whole.summary["client_steps"]
    with pytest.raises(CheckpointError, match="the run is complete"):
        checkpoint.read(half.folder)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(2, 1), (0, 2), (2, 0)], ids=str)
def test_a_run_goes_on_on_another_engine(
    reference, simulate, resume, ray_session, tmp_path, workers
):
    """First and last so many workers of Ray; 0 is the inline engine."""
    changes = {"strategy": PRIVATE, "rounds": 3, "checkpoint_every": 1}
    whole = reference(**changes)
    first, last = (ray_session(count) if count else None for count in workers)
    stopped(simulate, 2, session=first, **changes)
    half = type(whole)(tmp_path / "run1")
    resume(half, last)
    assert half.equals(whole)
    assert half.rounds[COUNTED].equals(whole.rounds[COUNTED])


@pytest.fixture
def left(simulate, tmp_path):
    stopped(simulate, 2, rounds=3, checkpoint_every=1)
    return tmp_path / "run1"


def test_a_torn_checkpoint_is_refused(left):
    path = left / checkpoint.FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="torn"):
        checkpoint.read(left)


def test_a_damaged_checkpoint_is_refused(left):
    path = left / checkpoint.FILE
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(left)


def test_a_checkpoint_that_lies_about_its_round_is_refused(left):
    path = left / checkpoint.FILE
    data = path.read_bytes()
    assert data.count(b'"rounds":"2"') == 1
    path.write_bytes(data.replace(b'"rounds":"2"', b'"rounds":"1"'))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(left)


def test_a_foreign_checkpoint_is_refused(left):
    toml = left / "experiment.toml"
    toml.write_text(toml.read_text().replace("seed = 0", "seed = 5"))
    with pytest.raises(CheckpointError, match="another experiment: seed is 0 there and 5"):
        checkpoint.read(left)


def test_any_other_safetensors_file_is_refused(left):
    save_file({"weights/head": torch.zeros(3)}, left / checkpoint.FILE)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(left)


def test_results_that_lack_rounds_are_refused(left, resume):
    path = left / "rounds.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(ValueError, match="has 1 rounds, the checkpoint 2"):
        resume(SimpleNamespace(folder=left))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run"):
        checkpoint.read(tmp_path)


def test_a_checkpoint_holds_what_it_says_and_nothing_else(left):
    """Weights of both halves and the tail's Adam; heads are averaged, so no client has state."""
    assert set(load_file(left / checkpoint.FILE)) == {
        "weights/head", "weights/tail",
        "moments/tail/step", "moments/tail/exp_avg", "moments/tail/exp_avg_sq",
    }  # fmt: skip
    with safe_open(left / checkpoint.FILE, "pt") as file:
        assert file.metadata()["rounds"] == "2"


def test_a_run_that_another_process_writes_is_not_resumed(simulate, tmp_path):
    stopped(simulate, 2, rounds=3, checkpoint_every=1)
    folder = tmp_path / "run1"
    before = (folder / "rounds.csv").read_text()
    with alone(folder):
        result = CliRunner().invoke(cli.app, ["resume", str(folder)])
    assert result.exit_code == 2 and "another process is writing into" in result.stderr
    assert (folder / "rounds.csv").read_text() == before
    assert CliRunner().invoke(cli.app, ["resume", str(folder)]).exit_code == 0


def test_keys_that_change_no_result_may_differ_and_no_others(simulate, tmp_path):
    stopped(simulate, 2, rounds=3, checkpoint_every=1)
    folder = str(tmp_path / "run1")
    for key in ("seed=7", "out=elsewhere"):
        result = CliRunner().invoke(cli.app, ["resume", folder, key])
        assert result.exit_code == 2 and key.partition("=")[0] in result.stderr
    assert CliRunner().invoke(cli.app, ["resume", folder, "device=cpu", "stack=1"]).exit_code == 0
    assert "stack = 1" in (tmp_path / "run1" / "experiment.toml").read_text()


def resumed_here(folder):
    """Resume from the command line; return what it said on stderr, and the summary's CPU."""
    result = CliRunner().invoke(cli.app, ["resume", str(folder)])
    assert result.exit_code == 0
    return result.stderr, json.loads((folder / "summary.json").read_text())["machine"]["cpu"]


def test_going_on_on_another_kind_of_cpu_is_told_in_one_line(left):
    experiment, found = checkpoint.read(left)
    replace(found, cpu="x86_64 OLD").write(left, experiment)
    told, cpu = resumed_here(left)
    here = provenance.cpu()
    assert cpu == f"x86_64 OLD, {here}"
    assert told.startswith(
        f"warning: so far on a CPU or GPU of kind x86_64 OLD, from here on {here}"
    )
    assert told.count("\n") == 1


def test_going_on_on_the_same_kind_of_cpu_says_nothing(left):
    assert resumed_here(left) == ("", provenance.cpu())


def test_a_checkpoint_that_does_not_know_its_cpu_says_nothing(left):
    path = left / checkpoint.FILE
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    del metadata["cpu"], metadata["digest"]
    tensors = load_file(path)
    save_file(tensors, path, {**metadata, "digest": checkpoint._digest(tensors, metadata)})
    assert checkpoint.read(left)[1].cpu == ""
    assert resumed_here(left) == ("", provenance.cpu())


def test_the_kind_of_cpu_is_that_whose_instructions_torch_uses(monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    code = "from simulations.runs import provenance; print(provenance.cpu())"
    found = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert found[1] in {"DEFAULT", "NO AVX"}  # torch's name for none
