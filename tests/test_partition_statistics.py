"""Partitions in numbers, against numbers done by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from simulations.cli import main as cli
from simulations.data import statistics
from simulations.data.samples import Samples
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import prepare_labels
from simulations.runs.setup import prepare


def table(*clients):
    """Make a table from the labels of each client."""
    labels = np.array([label for held in clients for label in held], dtype=np.int64)
    ends = np.cumsum([len(held) for held in clients])
    parts = np.split(np.arange(len(labels)), ends[:-1])
    return Samples(np.empty((len(labels), 0, 0, 0), np.uint8), labels, parts, 4, [0.0], [1.0])


def test_counts_are_those_done_by_hand():
    counts = statistics.count(table([0, 0, 1], [], [3, 1, 1]))
    assert counts.tolist() == [[2, 1, 0, 0], [0, 0, 0, 0], [0, 2, 0, 1]]
    rows = statistics.tidy(counts).to_numpy().tolist()
    assert rows == [[0, 0, 2], [0, 1, 1], [2, 1, 2], [2, 3, 1]]


def test_entropy_and_distance_are_those_done_by_hand():
    frame = statistics.per_client(statistics.count(table([0, 0], [0, 1], [2, 2, 2, 2], [])))
    assert frame["samples"].tolist() == [2, 2, 4, 0]
    assert frame["classes"].tolist() == [1, 2, 1, 0]
    assert frame["entropy"].tolist()[:3] == pytest.approx([0, 1, 0])
    assert frame.loc[3, ["entropy", "distance"]].isna().all()
    # Global 3/8, 1/8, 1/2. Client 2 has (0, 0, 1), so the mean is (3/16, 1/16, 3/4), and
    # JSD = 1/2 log2(1 / (3/4)) + 1/2 (3/8 log2 2 + 1/8 log2 2 + 1/2 log2(2/3)).
    divergence = 0.5 * math.log2(4 / 3) + 0.5 * (3 / 8 + 1 / 8 + 0.5 * math.log2(2 / 3))
    assert frame["distance"][2] == pytest.approx(math.sqrt(divergence))


def test_a_client_like_all_together_is_at_distance_zero():
    frame = statistics.per_client(statistics.count(table([0, 1, 2, 3], [0, 1, 2, 3])))
    assert frame["distance"].tolist() == pytest.approx([0, 0])
    assert frame["entropy"].tolist() == pytest.approx([2, 2])


def test_the_summary_counts_empty_clients_and_leaves_them_out_of_means():
    found = statistics.partition_summary(statistics.count(table([0, 0], [0, 1], [2, 2, 2, 2], [])))
    sizes = {name: found[f"{name} samples"] for name in ("fewest", "median", "most")}
    assert sizes == {"fewest": 0, "median": 2, "most": 4}
    assert (found["clients"], found["empty clients"], found["samples"]) == (4, 1, 8)
    assert found["mean label entropy, bits"] == pytest.approx(1 / 3)
    # Pairs of (0, 2, 2, 4) differ by 2, 2, 4, 0, 2, 2: 12 over 4 clients times 8 samples.
    assert found["Gini of sizes"] == pytest.approx(12 / 32)


def test_gini_is_zero_for_equals_and_near_one_for_a_monopoly():
    assert statistics.gini([5, 5, 5]) == 0
    assert statistics.gini([0] * 99 + [7]) == pytest.approx(0.99)


def test_every_run_says_what_it_was_trained_on(simulate):
    outcome = simulate(rounds=1, partition="pathological(num_classes_per_partition=2)")
    written = pd.read_csv(outcome.folder / "partition.csv")
    setup = prepare(Experiment.from_dict(outcome.summary["experiment"]))
    assert (written["samples"] > 0).all()
    for client, rows in written.groupby("client"):
        held = setup.train.labels[setup.train.partitions[client]]
        assert dict(zip(rows["class"], rows["samples"], strict=True)) == dict(
            zip(*np.unique(held, return_counts=True), strict=True)
        )


def test_the_command_prints_and_writes_but_trains_nothing(tmp_path):
    (tmp_path / "c.toml").write_text("clients = 30\n")
    command = ["partition", str(tmp_path / "c.toml"), "partition=dirichlet(alpha=0.1)"]
    result = CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "Jensen-Shannon" in result.output and "and 10 more clients" in result.output
    written = pd.read_csv(tmp_path / "out" / "partition.csv")
    assert list(written.columns) == ["client", "class", "samples"]
    assert (tmp_path / "out" / "partition.svg").read_text().startswith("<?xml")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"partition.csv", "partition.svg"}
    assert CliRunner().invoke(cli.app, [*command, "partition=dirchlet"]).exit_code == 2


def test_quantity_skew_is_a_partition():
    sizes = {}
    for spec in ("linear", "square", "exponential", "size(partition_sizes=[10, 20, 30, 40])"):
        values = {"clients": 4, "partition": spec}
        counts = statistics.count(prepare_labels(Experiment.from_dict(values))[0])
        sizes[spec[:3]] = counts.sum(axis=1)
    assert all((np.diff(found) > 0).all() for found in sizes.values())
    assert sizes["siz"].tolist() == [10, 20, 30, 40]
    whole = sizes["lin"].sum()
    assert sizes["lin"] / whole == pytest.approx(np.arange(1, 5) / 10, abs=0.01)
    assert sizes["squ"] / whole == pytest.approx(np.arange(1, 5) ** 2 / 30, abs=0.01)
