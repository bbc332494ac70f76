"""Budgets, and codecs compared under them."""

import json
import shutil
from functools import partial
from io import StringIO

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from simulations.cli import main as cli
from simulations.runs.budget import Bytes, Nominal
from simulations.runs.experiment import Experiment
from simulations.runs.settings import read_toml
from simulations.runs.setup import prepare
from simulations.studies.cell_process import Work, run_and_log
from simulations.studies.cells import Cell, is_finished
from simulations.studies.pareto import front

CONFIG = """
dataset = "digits()"
partition = "dirichlet(alpha=0.5)"
clients = 4
model = "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)"
cut = 1
batch_size = 16
local_steps = 2
engine = "inline()"

[pareto]
codecs = [{ codec = "identity()" }, { codec = "topk(ratio={ratio})", downlink = "bf16()" }]
ratios = [0.2]
seeds = [0, 1]
rounds = 3
bytes = 1e5
all_bytes = 1.2e5
client_flops = 1e6
max_rounds = 4
"""


def test_a_run_ends_with_the_first_round_that_spends_its_budget(simulate):
    assert len(simulate(rounds=4, budget="rounds(2)").rounds) == 2
    assert len(simulate(rounds=2, budget="bytes(1)").rounds) == 1
    free = simulate(rounds=4)
    sent = free.rounds[["payload_bytes_up", "payload_bytes_down"]].sum(axis=1).cumsum()
    limit = float(sent.iloc[2])
    exact = simulate(rounds=4, budget=f"rounds(9) | bytes({limit})")
    assert len(exact.rounds) == 3 and exact.summary["status"] == "complete"
    flops = free.rounds["client_flops"].cumsum()
    assert len(simulate(rounds=4, budget=f"client_flops({flops.iloc[0] + 1.0})").rounds) == 2


def test_nominal_samples_are_samples_times_the_ratio_of_the_paper(simulate):
    whole = simulate(rounds=2)
    assert (whole.rounds["nominal_samples"] == whole.rounds["samples"]).all()
    part = simulate(rounds=2, codec="c3sl(factor=4)", budget="nominal(1)")
    assert len(part.rounds) == 1
    assert part.rounds["nominal_samples"].iloc[0] == part.rounds["samples"].iloc[0] / 4
    other = simulate(rounds=1, codec="fp16()").rounds.iloc[0]  # the paper has no such codec
    assert other["nominal_samples"] == pytest.approx(other["ratio"] * other["samples"])
    assert (simulate(rounds=1, strategy="fedavg()").rounds["nominal_samples"] == 0).all()


def test_a_budget_of_fractions_is_used_up_to_the_last_round():
    """Ten times 0.1 is a little less than 1, and three times a little more than 0.3."""
    tenths = pd.DataFrame({"nominal_samples": [0.1] * 10})
    assert Nominal(1.0).is_spent(tenths.cumsum().iloc[-1])
    assert Nominal(0.3).pays(tenths["nominal_samples"].cumsum()).sum() == 3


@pytest.mark.parametrize("strategy", ["parallel()", "fedavg()", "centralised()"])
def test_flops_are_those_of_whoever_holds_the_layers(simulate, strategy):
    outcome = simulate(strategy=strategy, rounds=1)
    values = {**outcome.summary["experiment"]}
    setup = prepare(Experiment.from_dict(values))
    samples, tokens = int(outcome.rounds["samples"].iloc[0]), setup.head.smashed_shape[0]
    head, tail = setup.head.flops(samples), setup.tail.flops(samples, tokens)
    expected = {"parallel()": (head, tail), "fedavg()": (head + tail, 0)}
    clients, server = expected.get(strategy, (0, head + tail))
    assert outcome.rounds["client_flops"].iloc[0] == clients
    assert outcome.rounds["server_flops"].iloc[0] == server


def test_adc_shrinks_the_tails_work_by_what_it_sends(simulate):
    """Attention apart, work is per token; with few tokens that is nearly all."""
    changes = {"rounds": 1, "partition": "iid()", "batch_size": 240}
    whole = simulate(**changes).summary
    part = simulate(**changes, codec="adc(ratio=0.25)").summary
    assert part["client_flops"] == whole["client_flops"]
    share = part["server_flops"] / whole["server_flops"]
    assert 0.15 < share < 0.26


def run_study(parent, *arguments, changes=None):
    text = CONFIG
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    (parent / "study.toml").write_text(text)
    command = ["pareto", str(parent / "study.toml"), "--out", str(parent / "out")]
    return CliRunner().invoke(cli.app, [*command, *arguments]), parent / "out"


@pytest.fixture
def study(tmp_path):
    return partial(run_study, tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a study that has been run, to be read only."""
    result, folder = run_study(tmp_path_factory.mktemp("study"), "--jobs", "2")
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.slow
def test_a_study_reads_each_accuracy_off_when_the_budget_is_used_up(finished):
    folder = finished
    frame = pd.read_csv(folder / "pareto.csv")
    assert (folder / "pareto.svg").exists()
    assert len(frame) == 2 * 2 * 4  # codecs x seeds x budgets
    for row in frame.to_dict("records"):
        rounds = pd.read_csv(folder / f"{row['codec']}-seed{row['seed']}" / "rounds.csv")
        payload, weights = (
            (rounds[f"{kind}_bytes_up"] + rounds[f"{kind}_bytes_down"]).cumsum()
            for kind in ("payload", "head")
        )
        spent = {
            "rounds": rounds["round"],
            "bytes": payload,
            "all_bytes": payload + weights,
            "client_flops": rounds["client_flops"].cumsum(),
        }[row["budget"]]
        count = int((spent <= row["limit"]).sum())
        assert row["rounds"] == count
        assert row["reached"] == (spent.iloc[-1] >= row["limit"])
        if count:
            assert row["accuracy"] == rounds["accuracy"].iloc[count - 1]
            assert row["payload_bytes"] == payload.iloc[count - 1]
            assert row["head_bytes"] == weights.iloc[count - 1]
        assert row["dropped"] == 0
    assert set(frame["codec"]) == {"identity", "topk-0.2"}
    assert set(frame[frame["codec"] == "topk-0.2"]["downlink"]) == {"bf16()"}


@pytest.mark.slow
def test_every_cell_is_a_plain_run_that_ends_with_the_last_budget(finished, tmp_path):
    cells = sorted(path.parent for path in finished.glob("*/summary.json"))
    assert [cell.name for cell in cells] == [
        "identity-seed0", "identity-seed1", "topk-0.2-seed0", "topk-0.2-seed1",
    ]  # fmt: skip
    for cell in cells[::3]:  # both codecs, both seeds
        rounds = len(pd.read_csv(cell / "rounds.csv"))
        plain = tmp_path / f"plain-{cell.name}"
        command = ["run", str(cell / "experiment.toml"), f"rounds={rounds}", "--out", str(plain)]
        assert CliRunner().invoke(cli.app, command).exit_code == 0
        found, expected = (load_file(path / "model.safetensors") for path in (cell, plain))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)


def test_a_dry_run_counts_the_steps_of_all_rounds_as_a_bound(study):
    result, folder = study("--dry-run")
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if "-seed" in line]
    assert [" 32 " in row for row in rows] == [True] * 4  # 4 clients, 2 steps each, 4 rounds
    assert "4 cells, 4 to run: at most" in result.output
    assert not folder.exists()


def test_a_cell_until_several_budgets_ends_with_the_last_and_larger_ones_want_more(tmp_path):
    (tmp_path / "c.toml").write_text(CONFIG.partition("[pareto]")[0])
    folder, log = tmp_path / "out", StringIO()
    values = {**read_toml(tmp_path / "c.toml"), "rounds": 4, "out": str(folder)}
    work = Work(Experiment.from_dict(values), ["bytes(1)", "rounds(2)"])
    assert run_and_log(work, log) == 0
    rounds = pd.read_csv(folder / "rounds.csv")
    assert len(rounds) == 2
    lines = log.getvalue().splitlines()
    for number, accuracy in enumerate(rounds["accuracy"]):
        start = f"out: round {number + 1}/4 accuracy {100 * accuracy:.1f} %, "
        assert lines[number].startswith(start)
    assert lines[2:] == ["ended after round 2 of 4: budget of the study is used up"]
    experiment = Experiment.from_dict(read_toml(folder / "experiment.toml"))
    wanted = [
        (),
        ["rounds(1)"],
        ["rounds(2)", "bytes(1)"],
        ["rounds(3)"],
        ["rounds(2)", "bytes(1e9)"],
    ]
    finished = [is_finished(folder, Cell("", {}, experiment, until)) for until in wanted]
    assert finished == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"cut": 9}, 2, "error: cut must be in"),
        ({"head_optimizer": "sgd(lr=1e30)", "rounds": 3}, 1, "clients were dropped"),
    ],
)
def test_a_cell_that_fails_says_why_on_the_last_line_of_its_log(tmp_path, changes, code, message):
    (tmp_path / "c.toml").write_text(CONFIG.partition("[pareto]")[0])
    values = {**read_toml(tmp_path / "c.toml"), **changes, "out": str(tmp_path / "out")}
    log = StringIO()
    assert run_and_log(Work(Experiment.from_dict(values)), log) == code
    last = log.getvalue().splitlines()[-1]
    assert last.startswith("error: ") and message in last


@pytest.mark.slow
def test_a_stopped_study_goes_on_and_a_changed_one_is_refused(study, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "out")
    first = pd.read_csv(folder / "pareto.csv")
    kept = (folder / "identity-seed0" / "rounds.csv").stat().st_mtime_ns
    stopped = folder / "topk-0.2-seed1" / "summary.json"
    found = json.loads(stopped.read_text())
    stopped.write_text(json.dumps({**found, "status": "interrupted"}))
    result, _ = study()
    assert "3 of 4 cells are finished already" in result.output
    assert (folder / "identity-seed0" / "rounds.csv").stat().st_mtime_ns == kept
    assert pd.read_csv(folder / "pareto.csv").equals(first)
    result, _ = study("batch_size=8")
    assert result.exit_code == 2 and "another study, with batch_size=16" in result.output


@pytest.mark.slow
def test_a_codec_that_fails_does_not_end_the_study(study):
    """Such steps take the smashed data beyond what 16 bits hold, and 32 bits hold them."""
    changes = {
        'engine = "inline()"': 'head_optimizer = "sgd(lr=3e4)"',
        'codec = "topk(ratio={ratio})", downlink = "bf16()"': 'codec = "fp16()"',
    }
    result, folder = study(changes=changes)
    assert result.exit_code == 1
    for seed in (0, 1):
        assert f"fp16-seed{seed}: round" in result.stderr
        assert "clients were dropped" in (folder / f"fp16-seed{seed}" / "log.txt").read_text()
    assert "identity" not in result.stderr
    frame = pd.read_csv(folder / "pareto.csv").set_index(["codec", "budget"])
    assert frame.loc[("identity", "rounds"), "reached"].all()
    assert not frame.loc[("fp16", "rounds"), "reached"].any()
    again, _ = study(changes=changes)
    assert again.exit_code == 1 and "2 of 4 cells are finished already" in again.output


def test_a_cell_that_never_began_has_no_accuracy(tmp_path):
    cell = Cell(
        "adc-0.1-seed3", {"codec": "adc(0.1)", "downlink": "bf16()", "seed": 3}, Experiment()
    )
    row = front([cell], {"bytes": Bytes(1.0)}, tmp_path).iloc[0]
    assert (row["codec"], row["rounds"], row["reached"]) == ("adc-0.1", 0, False)
    assert pd.isna(row["accuracy"]) and pd.isna(row["ratio"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rounds = 3", "rounds = 0", "rounds"),
        ("seeds = [0, 1]", "sedes = [0, 1]", "sedes"),
        ('{ codec = "identity()" }', '{ codec = "adk()" }', "did you mean"),
        ('{ codec = "identity()" }', '{ codec = "topk(ratio={ratio})" }', "give a name"),
        ("[pareto]", "[parreto]", "did you mean \\[pareto\\]"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(tmp_path, old, new, message):
    import re

    (tmp_path / "s.toml").write_text(CONFIG.replace(old, new, 1))
    result = CliRunner().invoke(
        cli.app, ["pareto", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 2
    assert re.search(message, " ".join(result.output.split()))
