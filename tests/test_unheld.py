"""Every row belongs to one client or is counted as nobody's; so are classes without an owner."""

import json
import re
from dataclasses import asdict
from itertools import product

import datasets
import numpy as np
import pytest
from flwr_datasets.partitioner import PathologicalPartitioner, ShardPartitioner
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from fl_split.seeds import derive
from simulations.cli import main as cli
from simulations.data import partition
from simulations.data.partition import PartitionError, Unheld
from simulations.data.partitioners import PARTITIONS
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import prepare_labels
from simulations.runs.setup import prepare

NEEDS_ARGUMENTS = {
    "continuous": "(partition_by='value', strictness=0.5)",
    "distribution": "(distribution_array=[[0.5, 0.5], [0.5, 0.5]], "
    "num_unique_labels_per_partition=2, preassigned_num_samples_per_label=5)",
    "grouped_natural": "(partition_by='who', group_size=2)",
    "inner_dirichlet": "(partition_sizes=[10, 20], alpha=1.0)",
    "natural": "(partition_by='who')",
    "size": "(partition_sizes=[10, 20])",
}
"""Arguments that fit two clients, of the partitions without a default for them."""

IMAGES = 1433
"""Digits for training: 1,797 less a fifth of each class, rounded."""


def held(spec, clients, seed=0, **values):
    """Partition digits; return the rows, their true classes and what nobody holds."""
    values = {"partition": spec, "clients": clients, "seed": seed, **values}
    table, _, nobodys = prepare_labels(Experiment.from_dict(values))
    return table.partitions, table.labels, nobodys


def toy(count=600):
    """Return rows of two classes, of four people, with a value."""
    columns = {"label": [0, 1], "who": ["a", "b", "c", "d"]}
    rows = {
        name: [values[i % len(values)] for i in range(count)] for name, values in columns.items()
    }
    return datasets.Dataset.from_dict({**rows, "value": np.linspace(0, 1, count).tolist()})


@pytest.mark.parametrize("name", PARTITIONS)
def test_rows_are_held_once_or_counted_as_nobodys(name):
    if name in NEEDS_ARGUMENTS:
        table, clients = toy(), 4 if name == "natural" else 2
        spec, labels = name + NEEDS_ARGUMENTS[name], np.array(table["label"])
        parts = partition.split(table, spec, clients=clients, label="label", seed=0)
        nobodys = partition.unheld(parts, labels, ["even", "odd"])
    else:
        parts, labels, nobodys = held(name, clients=5)
        assert len(labels) == IMAGES
    rows = np.concatenate(parts).tolist()
    assert len(set(rows)) == len(rows)
    assert len(rows) + nobodys.samples == len(labels)
    assert set(rows) <= set(range(len(labels)))


def test_two_classes_a_client_leave_no_digit_and_no_image_to_nobody():
    for seed in range(8):
        parts, labels, nobodys = held("pathological(num_classes_per_partition=2)", 10, seed)
        assert sorted(np.concatenate(parts).tolist()) == list(range(IMAGES))
        assert set(labels[np.concatenate(parts)]) == set(range(10))
        assert all(len(set(labels[rows])) == 2 for rows in parts)
        assert nobodys == Unheld(0, []) and str(nobodys) == ""


def test_as_many_classes_have_owners_as_there_are_places():
    labels = np.arange(10).repeat(30)
    table = datasets.Dataset.from_dict({"label": labels.tolist()})
    names = [f"class {number}" for number in range(10)]
    for clients, each, seed in product((1, 2, 3, 4, 5, 7, 9, 10, 11, 23), (1, 2, 3, 5, 10), (0, 1)):
        spec = f"pathological(num_classes_per_partition={each})"
        parts = partition.split(table, spec, clients=clients, label="label", seed=seed)
        assert all(len(set(labels[rows])) == each for rows in parts)
        found = {names[label] for label in labels[np.concatenate(parts)]}
        assert len(found) == min(10, clients * each)
        nobodys = partition.unheld(parts, labels, names)
        assert nobodys.classes == [name for name in names if name not in found]
        assert nobodys.samples == 30 * len(nobodys.classes)


def digits_nobody_draws(seed):
    """Draw two digits for each of ten clients as Flower's random mode does; return the rest."""
    draw = np.random.default_rng(derive(seed, "partition"))
    drawn = [draw.choice(range(10), size=2, replace=False).tolist() for _ in range(10)]
    return sorted(set(range(10)) - {digit for pair in drawn for digit in pair})


def test_random_owners_are_flowers_and_missing_classes_are_named():
    spec = "pathological(num_classes_per_partition=2, class_assignment_mode='random')"
    totals = np.bincount(load_digits().target)
    missing = {}
    for seed in range(8):
        parts, _, nobodys = held(spec, 10, seed)
        missing[seed] = digits_nobody_draws(seed)
        assert nobodys.classes == [str(digit) for digit in missing[seed]]
        assert nobodys.samples == IMAGES - sum(map(len, parts))
        # Four fifths of each class are for training, give or take an image.
        expected = 0.8 * totals[missing[seed]].sum()
        assert nobodys.samples == pytest.approx(expected, abs=len(missing[seed]))
    assert missing[2] == [1, 2, 7, 9]
    assert all(missing.values())


def test_with_enough_clients_classes_are_those_of_flowers_deterministic_mode():
    table = datasets.Dataset.from_dict({"label": np.arange(10).repeat(60).tolist()})
    labels = np.array(table["label"])
    for seed in range(3):
        flower = PathologicalPartitioner(
            12, "label", 3, "first-deterministic", seed=derive(seed, "partition")
        )
        flower.dataset = table
        theirs = [set(flower.load_partition(client)["label"]) for client in range(12)]
        spec = "pathological(num_classes_per_partition=3)"
        ours = partition.split(table, spec, clients=12, label="label", seed=seed)
        assert [set(labels[rows]) for rows in ours] == theirs


@pytest.mark.parametrize(("clients", "shards"), [(10, 2), (50, 3)])
def test_shards_hold_every_image_and_differ_by_one(clients, shards):
    parts, labels, nobodys = held(f"shard(num_shards_per_partition={shards})", clients)
    assert sorted(np.concatenate(parts).tolist()) == list(range(IMAGES))
    assert nobodys == Unheld(0, [])
    sizes = {len(rows) for rows in parts}
    least = IMAGES // (clients * shards)  # of a shard; the largest has one more
    assert shards * least <= min(sizes) <= max(sizes) <= shards * (least + 1)
    # A shard shorter than a class touches two classes at most.
    assert all(len(set(labels[rows])) <= 2 * shards for rows in parts)


def test_shards_that_divide_the_rows_are_flowers():
    table = datasets.Dataset.from_dict({"label": np.arange(10).repeat(60).tolist()})
    order = np.random.default_rng(derive(3, "partition")).permutation(600)
    numbered = table.add_column("row", list(range(600))).select(order)
    flower = ShardPartitioner(10, "label", 2, seed=derive(3, "partition"))
    flower.dataset = numbered
    ours = partition.split(table, "shard", clients=10, label="label", seed=3)
    assert [rows.tolist() for rows in ours] == [
        list(flower.load_partition(client)["row"]) for client in range(10)
    ]


def test_shards_of_a_given_size_leave_the_rest_to_nobody_and_say_so():
    parts, _, nobodys = held("shard(num_shards_per_partition=2, shard_size=50)", 10)
    assert [len(rows) for rows in parts] == [100] * 10
    assert nobodys.samples == IMAGES - 1000


def test_more_shards_than_rows_are_refused():
    with pytest.raises(PartitionError, match="2000 shards of 1433 rows"):
        held("shard(num_shards_per_partition=200)", 10)


def test_what_is_held_out_or_mislabelled_is_not_nobodys():
    spec = "pathological(num_classes_per_partition=2, class_assignment_mode='random')"
    values = {
        "partition": spec,
        "clients": 10,
        "seed": 2,
        "model": "lenet(image_size=16)",
        "cut": "conv1",
    }
    plain = prepare_labels(Experiment.from_dict(values))[2]
    changed = {**values, "holdout": 0.5, "skew": "label_noise(rate=0.5)"}
    assert plain.classes == ["1", "2", "7", "9"]
    assert prepare_labels(Experiment.from_dict(changed))[2] == plain
    assert prepare(Experiment.from_dict(changed)).unheld == plain


CONFIG = """
clients = 3
rounds = 1
local_steps = 1
model = "lenet(image_size=16)"
cut = "conv1"
strategy = "fedavg()"
engine = "inline()"
partition = "pathological(num_classes_per_partition=1)"
"""
"""Three places for ten classes: 0, 1 and 2 have an owner."""

REST = "3, 4, 5, 6, 7, 8, 9"


def test_the_partition_command_shows_what_nobody_holds(tmp_path):
    (tmp_path / "c.toml").write_text(CONFIG)
    for more, samples, classes in (
        ([], IMAGES - few_digits(), REST),
        (["partition=iid()"], 0, "none"),
    ):
        shown = CliRunner().invoke(cli.app, ["partition", str(tmp_path / "c.toml"), *more])
        assert shown.exit_code == 0, shown.output
        assert re.search(rf"training images nobody holds +{samples:,}\s", shown.output)
        assert re.search(rf"classes nobody holds +{classes}\s", shown.output)


def few_digits():
    """Count the training images of 0, 1 and 2."""
    parts, labels, _ = held("iid()", 3)
    return int((labels[np.concatenate(parts)] < 3).sum())


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_run_warns_of_what_nobody_holds_and_writes_it_down(tmp_path, command):
    (tmp_path / "c.toml").write_text(CONFIG)
    arguments = [str(tmp_path / "c.toml"), "--out", str(tmp_path / "out")]
    grid = ["partition=iid(),pathological(num_classes_per_partition=1)"]
    result = CliRunner().invoke(
        cli.app, [command, *arguments, *(grid if command == "sweep" else [])]
    )
    assert result.exit_code == 0, result.output
    samples = IMAGES - few_digits()
    (warning,) = [line for line in result.output.splitlines() if "nobody holds" in line]
    assert "pathological" in warning and "seed 0" in warning
    assert f"{samples:,} of the training images" in warning and f"classes {REST}" in warning
    found = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("summary.json")]
    expected = {"samples": samples, "classes": REST.split(", "), "empty_clients": 0}
    by_partition = {
        one["experiment"]["partition"].partition("(")[0]: one["unheld"] for one in found
    }
    assert by_partition.pop("pathological") == expected
    assert by_partition == ({} if command == "run" else {"iid": asdict(Unheld(0, []))})
