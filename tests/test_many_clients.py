"""A client that does nothing costs a number; partitions and draws are what they always were."""

import re
import tracemalloc
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from flwr_datasets.partitioner import DirichletPartitioner
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from typer.testing import CliRunner

from fl_split.seeds import generator
from fl_split.specs import parse
from simulations.cli import main as cli
from simulations.clients import client_app
from simulations.data import partition, private_members, statistics
from simulations.data.partition import PartitionError
from simulations.data.partitioners import PARTITIONS
from simulations.data.private_members import ROW, Dirichlet, read_column
from simulations.data.ragged import Ragged
from simulations.data.samples import Samples
from simulations.engines.inline import Inline, InlineGrid
from simulations.engines.local_grid import LocalGrid
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies.server.participants import Population, roll_call
from strategies.server.threads import ServerThreads

NEEDS = {
    "continuous": "(partition_by='value', strictness=0.5)",
    "distribution": "(distribution_array=[[0.5, 0.5], [0.5, 0.5]], "
    "num_unique_labels_per_partition=2, preassigned_num_samples_per_label=5)",
    "grouped_natural": "(partition_by='who', group_size=2)",
    "inner_dirichlet": "(partition_sizes=[10, 20], alpha=1.0)",
    "label_clusters": "(clusters=2)",
    "natural": "(partition_by='who')",
    "size": "(partition_sizes=[10, 20])",
}
"""Arguments that fit two partitions, or with `natural` four, of entries without a default."""


def rows(count=300, classes=2, **more):
    """Return rows of some classes, in turn, of four people, with a value."""
    columns = {"label": range(classes), "who": ["d", "a", "c", "b"]}
    found = {name: [some[i % len(some)] for i in range(count)] for name, some in columns.items()}
    return datasets.Dataset.from_dict({**found, "value": np.linspace(0, 1, count), **more})


def opened(name, table):
    """Return the partitioner of an entry on rows that are numbered and shuffled."""
    given = {"num_partitions": 2, "partition_by": "label", "seed": 3}
    found = parse(name + NEEDS.get(name, ""), PARTITIONS, given)
    numbered = table.add_column(ROW, np.arange(len(table)))
    found.dataset = numbered.select(np.random.default_rng(0).permutation(len(table)))
    return found


@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.filterwarnings("ignore")
def test_rows_read_in_one_pass_are_those_of_one_partition_after_the_other(name):
    """This fails when flwr-datasets keeps its rows elsewhere: then each partition is loaded."""
    one = opened(name, rows())
    parts = [one.load_partition(number)[ROW][:] for number in range(one.num_partitions)]
    found = private_members.row_lists(opened(name, rows()))
    assert [part.tolist() for part in found] == parts
    assert private_members._known(one, len(parts)) is not None


def test_a_partitioner_of_others_is_asked_for_every_partition():
    class Backwards(DirichletPartitioner):
        def load_partition(self, partition_id):
            return super().load_partition(self.num_partitions - 1 - partition_id)

    def make(kind):
        made = kind(num_partitions=5, partition_by="label", alpha=1.0, min_partition_size=0)
        made.dataset = rows().add_column(ROW, np.arange(300))
        return made

    found = private_members.row_lists(make(Backwards))
    theirs = private_members.row_lists(make(DirichletPartitioner))
    assert [part.tolist() for part in found] == [part.tolist() for part in theirs][::-1]


def test_a_column_of_selected_rows_is_read_as_one_array():
    order = np.random.default_rng(0).permutation(300)[:200]
    some = rows().select(order)
    assert some._indices is not None  # what reading in one go relies on
    assert read_column(some, "who").to_pylist() == some["who"][:]
    assert read_column(rows(), "value").to_pylist() == rows()["value"][:]


@pytest.mark.parametrize("labels", ["numbers", "texts"])
@pytest.mark.parametrize("clients", [1, 7, 40])
@pytest.mark.parametrize(
    "given",
    [
        {"alpha": 0.3, "min_partition_size": 0},
        {"alpha": 1, "min_partition_size": 0, "shuffle": False},
        {"alpha": 50.0, "min_partition_size": 3},
        {"alpha": 0.1, "min_partition_size": 0, "self_balancing": True},
        {"alpha": "a list", "min_partition_size": 0, "self_balancing": True},
    ],
    ids=str,
)
def test_dirichlet_shares_are_flowers_to_the_last_row(given, clients, labels):
    draw = np.random.default_rng(1).integers(0, 5, 300)
    table = datasets.Dataset.from_dict({"label": draw if labels == "numbers" else draw.astype(str)})
    if given["alpha"] == "a list":
        given = {**given, "alpha": [0.1 * (1 + client) for client in range(clients)]}
    for seed in range(3):
        made = [
            kind(num_partitions=clients, partition_by="label", seed=seed, **given)
            for kind in (DirichletPartitioner, Dirichlet)
        ]
        for one in made:
            one.dataset = table.add_column(ROW, np.arange(300))
            assert one.num_partitions == clients
        theirs = [made[0].load_partition(client)[ROW][:] for client in range(clients)]
        assert [part.tolist() for part in private_members.row_lists(made[1])] == theirs


@pytest.mark.parametrize("spec", ["iid()", "dirichlet(alpha=0.3)"])
def test_twenty_thousand_clients_take_few_calls_and_little_memory(spec, monkeypatch):
    labels = np.random.default_rng(0).integers(0, 10, 60_000)
    table = datasets.Dataset.from_dict({"label": labels}).select(np.arange(60_000)[::-1])
    calls = []
    select = datasets.Dataset.select
    monkeypatch.setattr(
        datasets.Dataset, "select", lambda *given, **more: calls.append(1) or select(*given, **more)
    )
    tracemalloc.start()
    try:
        parts = partition.split(table, spec, clients=20_000, label="label", seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(calls) < 10
    assert peak < 50 * 60_000 * 8  # some arrays of all rows, whatever the number of clients
    assert len(parts) == 20_000
    assert np.array_equal(np.sort(parts.flat), np.arange(60_000))


def test_ragged_rows_are_a_sequence_of_arrays():
    parts = [np.array([5, 3]), np.array([], dtype=np.int64), np.array([0, 1, 2])]
    found = Ragged.of(parts)
    assert [part.tolist() for part in found] == [[5, 3], [], [0, 1, 2]]
    assert found[-1].tolist() == [0, 1, 2] and [len(p) for p in found[:2]] == [2, 0]
    assert (len(found), found.sizes.tolist()) == (3, [2, 0, 3])
    assert found.owners.tolist() == [0, 0, 2, 2, 2]
    assert Ragged.of(found) is found and len(Ragged.of([])) == 0
    with pytest.raises(IndexError, match="no client 3 among 3"):
        found[3]
    with pytest.raises(ValueError, match="add up to 2"):
        Ragged(np.arange(3), np.array([1, 1]))


def test_rounds_draw_among_clients_that_hold_samples_as_ever():
    held = {client: client % 3 for client in reversed(range(200))}
    people = Population(held, {}, 0.2, 16, 7)
    eligible = [client for client in range(200) if client % 3]
    for number in (1, 2):
        order = torch.randperm(len(eligible), generator=generator(7, "sample", number))
        expected = [eligible[place] for place in order.tolist()]
        assert people.shuffled(number) == expected
        assert people.sample(number) == sorted(expected[:40])


@pytest.mark.parametrize("with_labels", [False, True])
def test_a_grid_says_of_its_clients_what_they_would_answer(monkeypatch, with_labels):
    worker = prepare(Experiment.from_dict({"clients": 30})).worker()
    with Inline().session(client_app.app) as session:
        told = roll_call(session(worker, 30, 60.0), 30, 60.0, ServerThreads(), with_labels)
        monkeypatch.delattr(LocalGrid, "describe")
        asked = roll_call(session(worker, 30, 60.0), 30, 60.0, ServerThreads(), with_labels)
    assert told == asked


@pytest.mark.parametrize(
    "strategy", ["parallel()", "parallel(average_heads=False)"], ids=["averaged", "private"]
)
def test_clients_that_never_took_part_leave_nothing_behind(simulate, strategy):
    grids = []

    def session(worker, clients, timeout):
        grids.append(InlineGrid(client_app.app, worker, clients, timeout))
        return grids[0]

    def stop(row, result):
        if row["round"] == 2:
            raise KeyboardInterrupt

    given = {"clients": 60, "fraction": 0.1, "strategy": strategy, "local_steps": 1}
    folders = []
    with pytest.raises(KeyboardInterrupt):
        simulate(
            session=session,
            watch=lambda row, result: folders.append(result) or stop(row, result),
            rounds=3,
            checkpoint_every=1,
            **given,
        )
    took_part = {client for result in folders for client in result.traffic}
    assert len(took_part) <= 12
    states = grids[0].states()
    assert set(states) == (set() if strategy == "parallel()" else took_part)
    if strategy == "parallel()":
        assert len(grids[0]._contexts) == len(took_part)


def test_numbers_of_all_clients_are_those_of_one_after_the_other():
    counts = np.random.default_rng(0).integers(0, 5, (60, 7))
    counts[[4, 17]] = 0
    frame = statistics.per_client(counts)
    whole = counts.sum(axis=0)
    for client, row in enumerate(counts):
        found = frame.loc[client, ["entropy", "distance"]].tolist()
        expected = [entropy(row, base=2), jensenshannon(row, whole, base=2)]
        if row.sum():
            assert found == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(found).all()


def test_what_is_written_of_a_partition_is_its_counts(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, 50)
    parts = Ragged.of([np.arange(20), np.arange(0), np.arange(20, 50)])
    table = Samples(np.empty((50, 0, 0, 0), np.uint8), labels, parts, 4, [0.0], [1.0])
    statistics.write(table, tmp_path)
    written = pd.read_csv(tmp_path / "partition.csv")
    assert written.equals(statistics.tidy(statistics.count(table)))
    assert [written[written["client"] == k]["samples"].sum() for k in range(3)] == [20, 0, 30]


def test_a_figure_of_many_clients_shows_some_of_every_kind():
    counts = np.zeros((400, 4), dtype=np.int64)
    counts[np.arange(400), np.arange(400) % 4] = 1 + np.arange(400)
    shown = statistics.typical(statistics.tidy(counts), most=8)
    # In the order of classes: two of each, the smallest and the middle one, of clients 0 .. 399.
    assert shown.tolist() == [0, 200, 1, 201, 2, 202, 3, 203]
    assert statistics.typical(statistics.tidy(counts)).tolist() == list(range(400))
    assert statistics.choice(8, 400).startswith("8 of 400 clients, in order of")
    assert statistics.choice(400, 400) == ""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dirichlet(0.0)", "alpha must be a number above 0, got 0.0"),
        ("dirichlet(alpha=-1)", "alpha must be a number above 0, got -1"),
        ("dirichlet(alpha=1e999)", "alpha must be a number above 0, got inf"),
        ("dirichlet(alpha='0.3')", "alpha must be a number above 0, got '0.3'"),
        ("dirichlet(alpha=[0.1, 0.2])", "alpha has 2 numbers for 5 clients; give one number, or"),
        ("dirichlet(alpha=[1, 2, 3, 4, 0])", "above 0, got 0"),
        ("dirichlet(min_partition_size=61)", "takes 305 samples, there are 300; take 60 or less"),
        ("natural('who')", "makes 4 partitions of the 4 values of column 'who'; set clients=4"),
        ("natural('nobody')", "no column 'nobody'"),
    ],
)
def test_partitions_that_cannot_be_are_refused_in_one_line(spec, message):
    with pytest.raises(PartitionError, match=re.escape(message)) as caught:
        partition.split(rows(), spec, clients=5, label="label", seed=0)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_a_class_that_no_client_may_take_is_refused():
    """One client gets all classes until it holds its share; the other gets none of any."""
    spec = "dirichlet([1.0, 1e-300], self_balancing=True)"
    with pytest.raises(PartitionError, match=r"alpha=1e-300 is too small for self_balancing=True"):
        partition.split(rows(classes=20), spec, clients=2, label="label", seed=0)


def test_a_smallest_size_that_was_not_met_says_which_was():
    spec = "dirichlet(alpha=0.5, min_partition_size={})"
    with pytest.raises(PartitionError, match="min_partition_size=") as caught:
        partition.split(rows(), spec.format(55), clients=5, label="label", seed=0)
    best = int(re.search(r"take min_partition_size=(\d+),", str(caught.value))[1])
    assert f"in 11 draws the smallest partition held {best} samples at most" in str(caught.value)
    parts = partition.split(rows(), spec.format(best), clients=5, label="label", seed=0)
    assert parts.sizes.min() == best


@pytest.mark.parametrize(
    ("by_position", "by_name"),
    [
        ("dirichlet(0.5)", "dirichlet(alpha=0.5)"),
        ("pathological(1)", "pathological(num_classes_per_partition=1)"),
        ("shard(3)", "shard(num_shards_per_partition=3)"),
        (
            "continuous(0.5, partition_by='value')",
            "continuous(partition_by='value', strictness=0.5)",
        ),
    ],
)
def test_values_by_position_are_a_partitions_own(by_position, by_name):
    found = [
        partition.split(rows(), spec, clients=5, label="label", seed=0)
        for spec in (by_position, by_name)
    ]
    assert np.array_equal(found[0].flat, found[1].flat)
    assert np.array_equal(found[0].bounds, found[1].bounds)


def test_partitions_that_are_not_told_the_number_of_clients_keep_their_order():
    parts = partition.split(rows(), "grouped_natural('who', 2)", clients=2, label="label", seed=0)
    assert parts.sizes.tolist() == [150, 150]


@pytest.mark.parametrize("missing", [None, float("nan")], ids=["null", "nan"])
@pytest.mark.parametrize(
    "spec",
    ["natural('writer')", "grouped_natural('writer', 2)", "dirichlet(0.5, partition_by='writer')"],
)
def test_rows_without_a_value_in_the_column_are_counted(spec, missing):
    writer = [missing if i % 5 == 0 else float(i % 4) for i in range(300)]
    message = "60 of 300 training rows have no value in column 'writer'.*drop_missing='writer'"
    with pytest.raises(PartitionError, match=message):
        partition.split(rows(writer=writer), spec, clients=2, label="label", seed=0)


def test_clients_without_samples_are_counted_and_never_drawn(simulate):
    counted = partition.unheld([np.arange(3), np.arange(0), np.arange(0)], np.zeros(3, int), ["a"])
    assert str(counted) == "2 clients hold no image and are never drawn"
    assert str(replace(counted, empty_clients=1)) == "1 client holds no image and is never drawn"
    given = {"clients": 50, "partition": "dirichlet(alpha=0.01)"}
    outcome = simulate(rounds=1, local_steps=1, **given)
    holding = set(pd.read_csv(outcome.folder / "partition.csv")["client"])
    assert outcome.summary["unheld"]["empty_clients"] == 50 - len(holding) > 0
    assert set(outcome.clients["client"]) == holding


def test_the_partition_command_says_how_many_clients_hold_nothing(tmp_path):
    (tmp_path / "c.toml").write_text("clients = 1200\npartition = 'dirichlet(0.001)'\n")
    out = tmp_path / "out"
    shown = CliRunner().invoke(cli.app, ["partition", str(tmp_path / "c.toml"), "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    empty = 1200 - pd.read_csv(out / "partition.csv")["client"].nunique()
    assert re.search(rf"empty clients, never drawn +{empty:,}\s", shown.output)
    assert "nan" not in shown.output
