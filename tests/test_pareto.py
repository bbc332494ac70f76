"""Budgets, and codecs compared under them."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from fl_split.flops import head_step, tail_step
from simulations import cli
from simulations.experiment import Experiment
from simulations.setup import prepare
from strategies.budget import Nominal

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
    head, tail = head_step(setup.head, samples), tail_step(setup.tail, samples, tokens)
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


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.toml").write_text(CONFIG)

    def run(*arguments):
        command = ["pareto", str(tmp_path / "study.toml"), "--out", str(tmp_path / "out")]
        return CliRunner().invoke(cli.app, [*command, *arguments]), tmp_path / "out"

    return run


def test_a_study_reads_each_accuracy_off_when_the_budget_is_used_up(study):
    result, folder = study()
    assert result.exit_code == 0, result.output
    frame = pd.read_csv(folder / "pareto.csv")
    assert (folder / "pareto.svg").exists()
    assert len(frame) == 2 * 2 * 3  # codecs x seeds x budgets
    for row in frame.to_dict("records"):
        rounds = pd.read_csv(folder / f"{row['codec']}-seed{row['seed']}" / "rounds.csv")
        spent = {
            "rounds": rounds["round"],
            "bytes": (rounds["payload_bytes_up"] + rounds["payload_bytes_down"]).cumsum(),
            "client_flops": rounds["client_flops"].cumsum(),
        }[row["budget"]]
        count = int((spent <= row["limit"]).sum())
        assert row["rounds"] == count
        assert row["reached"] == (spent.iloc[-1] >= row["limit"])
        if count:
            assert row["accuracy"] == rounds["accuracy"].iloc[count - 1]
    assert set(frame["codec"]) == {"identity", "topk-0.2"}
    assert set(frame[frame["codec"] == "topk-0.2"]["downlink"]) == {"bf16()"}


def test_a_stopped_study_goes_on_and_a_changed_one_is_refused(study):
    _, folder = study()
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
    assert result.exit_code == 2 and "holds another experiment" in result.output


def test_a_codec_that_fails_does_not_end_the_study(study, monkeypatch):
    """Whoever sends infinities is dropped; here that is everybody who sends by topk."""
    from fl_split.codecs.topk import TopK

    original = TopK.encode

    def overflows(self, smashed, generator):
        payload = original(self, smashed, generator)
        if smashed.num_classes == 10 and len(smashed.labels) > 2:  # not in the dry run
            payload.values["kept"] = payload.values["kept"] * float("inf")
        return payload

    monkeypatch.setattr(TopK, "encode", overflows)
    result, folder = study()
    assert result.exit_code == 0
    assert result.output.count("clients were dropped") == 2
    frame = pd.read_csv(folder / "pareto.csv").set_index("codec")
    assert frame.loc["identity", "accuracy"].notna().any()
    assert frame.loc["topk-0.2", "accuracy"].isna().all()
    assert not frame.loc["topk-0.2", "reached"].any()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rounds = 3", "rounds = 0", "rounds"),
        ("seeds = [0, 1]", "sedes = [0, 1]", "sedes"),
        ('{ codec = "identity()" }', '{ codec = "adk()" }', "did you mean"),
        ('{ codec = "identity()" }', '{ codec = "topk(ratio={ratio})" }', "give a name"),
        ("[pareto]", "[parreto]", "no \\[pareto\\] table"),
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
