"""What a run leaves behind, and that its byte counts are those of the formulas."""

import json
import math
import os
import platform

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import ViTForImageClassification

from fl_split.exchange.records import GRADIENT
from simulations.clients import client_app
from simulations.runs.columns import COLUMNS
from simulations.runs.experiment import Experiment
from simulations.runs.results import OutputError, check_empty, check_folder
from simulations.runs.settings import read_toml
from simulations.runs.setup import prepare
from strategies.server import flower_messages

# TINY: 8x8 grey images, patch 4: 5 tokens of width 16; head of one block.
TOKENS, WIDTH = 5, 16
HEAD = (
    (1 * 16 * 16 + 16)  # patch kernel 4x4 on one channel, bias
    + 16 + TOKENS * 16  # CLS, positions
    + 4 * (16 * 16 + 16)  # q, k, v, o
    + 2 * (16 + 16)  # two norms
    + (16 * 64 + 64) + (64 * 16 + 16)  # MLP
)  # fmt: skip
NPY = 128  # header of a one-dimensional .npy array


def test_identity_bytes_by_formula(simulate):
    """Equal parts of 238 or 239 samples; every batch holds an 8 or a 9, so labels take 4 bits."""
    outcome = simulate(rounds=1, partition="iid()")
    row, clients = outcome.rounds.iloc[0], outcome.clients
    labels = sum(3 * 64 // 2 + math.ceil((count - 3 * 64) / 2) for count in clients["samples"])
    steps, samples = clients["steps"].sum(), clients["samples"].sum()
    values = 4 * TOKENS * WIDTH * samples
    up = 1 + (1 + 1 + len("tokens") + 1 + 3 * 4) + (1 + 1 + len("labels") + 1 + 1 * 4)
    down = 1 + (1 + 1 + len("tokens") + 1 + 3 * 4)
    assert row["payload_bytes_up"] == values + labels + steps * up
    assert row["payload_bytes_down"] == values + steps * down
    assert row["smashed_bytes"] == values
    assert row["head_bytes_up"] == row["head_bytes_down"] == 6 * (4 * HEAD + NPY)
    assert row["ratio"] == (row["payload_bytes_up"] + row["payload_bytes_down"]) / (2 * values)


def test_adc_bytes_are_what_crosses(simulate):
    """Count on the way, in the client app, what the results must report."""
    seen = {"up": 0, "down": 0}

    def watch(message, context):
        reply = client_app.app(message, context)
        if message.metadata.group_id != "0":
            for way, one in (("down", message), ("up", reply)):
                seen[way] += len(flower_messages.read(one).payload or b"")
        return reply

    summary = simulate(watch, codec="adc(ratio=0.25)").summary
    for way in ("up", "down"):
        assert summary[f"payload_bytes_{way}"] == seen[way]
        assert seen[way] > 0
    assert 0.15 < summary["ratio"] < 0.27


def test_fedavg_sends_the_whole_model_and_no_smashed_data(simulate):
    outcome = simulate(strategy="fedavg", rounds=1)
    row = outcome.rounds.iloc[0]
    whole = 4 * sum(value.numel() for value in outcome.model.values()) + 2 * NPY
    assert row["head_bytes_up"] == row["head_bytes_down"] == 6 * whole
    assert row["payload_bytes_up"] == row["payload_bytes_down"] == row["smashed_bytes"] == 0
    assert np.isnan(row["ratio"])


def test_sequential_pays_a_head_up_and_down_per_hand_over(simulate):
    row = simulate(strategy="sequential", rounds=1).rounds.iloc[0]
    assert row["head_bytes_up"] == row["head_bytes_down"] == 6 * (4 * HEAD + NPY)


def test_a_run_leaves_everything_and_can_be_rerun_from_it(simulate):
    outcome = simulate()
    assert list(outcome.rounds.columns) == COLUMNS
    assert outcome.rounds["round"].tolist() == [1, 2]
    summary = outcome.summary
    assert summary["status"] == "complete"
    assert summary["final_accuracy"] == outcome.rounds["accuracy"].iloc[-1]
    assert summary["best_accuracy"] == outcome.rounds["accuracy"].max()
    assert {"torch", "flwr", "transformers"} <= set(summary["versions"])
    architecture, instructions = summary["machine"]["cpu"].split()
    assert architecture == platform.machine()
    assert instructions == torch.backends.cpu.get_cpu_capability()
    values = read_toml(outcome.folder / "experiment.toml")
    assert Experiment.from_dict(values).model_dump(exclude={"out"}) == summary["experiment"]
    assert simulate(**values).equals(outcome)


def test_the_saved_model_is_the_evaluated_one(simulate):
    """transformers loads the folder and reaches the reported accuracy."""
    outcome = simulate(rounds=4, codec="adc(ratio=0.5)", fraction=0.5)
    model = ViTForImageClassification.from_pretrained(outcome.folder)
    test = prepare(Experiment.from_dict(outcome.summary["experiment"])).test
    pixels, labels = test.batch(slice(None))
    with torch.no_grad():
        right = (model(pixels).logits.argmax(dim=1) == labels).double().mean()
    assert float(right) == pytest.approx(outcome.summary["final_accuracy"], abs=1e-9)


def test_a_run_that_is_stopped_leaves_complete_rows(simulate, tmp_path):
    def impatient(message, context):
        if message.metadata.group_id == "3" and flower_messages.read(message).action == GRADIENT:
            raise KeyboardInterrupt
        return client_app.app(message, context)

    with pytest.raises(KeyboardInterrupt):
        simulate(impatient, rounds=9, strategy="sflv2(phi=1)", head_optimizer="sgd(lr=0.1)")
    folder = tmp_path / "run1"
    assert pd.read_csv(folder / "rounds.csv")["round"].tolist() == [1, 2]
    assert set(pd.read_parquet(folder / "clients.parquet")["round"]) == {1, 2}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == summary["ended_by"] == "interrupted"
    model = ViTForImageClassification.from_pretrained(folder)
    test = prepare(Experiment.from_dict(read_toml(folder / "experiment.toml"))).test
    pixels, labels = test.batch(slice(None))
    with torch.no_grad():
        right = (model(pixels).logits.argmax(dim=1) == labels).double().mean()
    assert float(right) == pytest.approx(pd.read_csv(folder / "rounds.csv")["accuracy"].iloc[-1])


def test_a_folder_that_holds_a_run_is_refused(simulate, tmp_path):
    outcome = simulate(rounds=1)
    with pytest.raises(OutputError, match="already holds a run"):
        check_folder(outcome.folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        check_folder(tmp_path / "file")


def test_files_that_are_no_run_are_not_written_among(tmp_path):
    for name in ("", "cell.toml", "log.txt", ".hidden"):  # what a sweep puts there
        (tmp_path / name).touch()
        check_empty(tmp_path)
    check_empty(tmp_path / "not-there")
    (tmp_path / "b.toml").touch()
    (tmp_path / "a.toml").touch()
    with pytest.raises(OutputError, match=r"other files \(a.toml and 1 more\)"):
        check_empty(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason", "rounds"),
    [
        ({}, "rounds", 3),
        ({"budget": "rounds(2) | bytes(1e12)"}, "rounds(limit=2)", 2),
        ({"budget": "rounds(2) | bytes(10, of='all')"}, "bytes(limit=10, of='all')", 1),
        ({"budget": "rounds(3)"}, "rounds", 3),
    ],
)
def test_a_summary_says_what_ended_the_run(simulate, changes, reason, rounds):
    summary = simulate(rounds=3, local_steps=1, **changes).summary
    assert (summary["ended_by"], summary["rounds"]) == (reason, rounds)
    assert summary["status"] == "complete"


def test_all_files_can_be_read_by_whom_the_umask_lets(simulate):
    before = os.umask(0o027)
    try:
        folder = simulate(rounds=1, codec="bottlenet(ratio=0.5)").folder
    finally:
        os.umask(before)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"model.safetensors", "codec.safetensors", "rounds.csv"} <= {p.name for p in files}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}
