"""Metrics by hand, and in the results of runs."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_limits

from fl_split.drift import drift
from fl_split.metrics import backward_transfer, by_class, jain, performance_gap, worst
from simulations.data import partition
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare


def test_metrics_by_hand():
    labels = np.array([0, 0, 1, 1, 1, 3])
    right = np.array([True, False, True, True, False, True])
    found = by_class(right, labels, 4)
    np.testing.assert_allclose(found, [1 / 2, 2 / 3, math.nan, 1.0])
    assert performance_gap(found) == pytest.approx(1 / 2)
    best = [0.75, 2 / 3, -math.inf, 1.0]
    assert backward_transfer(found, best) == pytest.approx(-0.25 / 3)
    assert worst([0.9, 0.1, 0.5] * 10, 0.1) == pytest.approx(0.1)
    assert worst([0.4, 0.8], 0.1) == 0.4
    assert worst([0.2, 0.4, *[0.9] * 13], 0.1) == pytest.approx(0.3)  # two of fifteen
    assert jain([0.5, 0.5, 0.5]) == pytest.approx(1)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(1 / 4)
    assert jain([0.0, 0.0]) == 1
    vectors = [np.array([0.0, 3.0], np.float32), np.array([0.0, -3.0], np.float32)]
    assert drift(vectors) == pytest.approx(3)


def test_drift_does_not_depend_on_the_number_of_threads():
    generator = np.random.default_rng(0)
    vectors = [generator.normal(size=100_003).astype(np.float32) for _ in range(5)]
    found = []
    for threads in (1, 2, 4):
        with threadpool_limits(threads):
            found.append(drift(vectors))
    assert len(set(found)) == 1


def test_shards_and_training_rows_share_a_client_between_them():
    parts = [np.arange(10), np.arange(10, 11), np.arange(0), np.arange(20, 25)]
    kept, shards = partition.hold_out(parts, 0.25, seed=0)
    assert {k: len(v) for k, v in shards.items()} == {0: 3, 3: 2}
    for client, rows in enumerate(parts):
        both = np.sort(np.concatenate([kept[client], shards.get(client, rows[:0])]))
        assert both.tolist() == rows.tolist()
    assert not partition.hold_out(parts, 0.0, seed=0)[1]
    again = partition.hold_out(parts, 0.25, seed=0)[1]
    assert all((again[k] == shards[k]).all() for k in shards)
    assert not all(
        (v == shards[k]).all() for k, v in partition.hold_out(parts, 0.25, seed=1)[1].items()
    )


def predictions(outcome, rows, setup):
    """Answers of the saved model, by transformers itself."""
    from transformers import ViTForImageClassification

    model = ViTForImageClassification.from_pretrained(outcome.folder).eval()
    with torch.no_grad():
        pixels, labels = (
            setup.train.batch(rows) if rows is not None else setup.test.batch(slice(None))
        )
        return (model(pixels).logits.argmax(dim=1) == labels).numpy(), labels.numpy()


def test_accuracies_by_class_and_client_are_those_of_the_saved_model(simulate):
    outcome = simulate(holdout=0.2, rounds=2, partition="dirichlet(alpha=0.5)")
    setup = prepare(Experiment.from_dict(outcome.summary["experiment"]))
    classes = pd.read_csv(outcome.folder / "classes.csv").query("round == 2")
    right, labels = predictions(outcome, None, setup)
    expected = [right[labels == number].mean() for number in range(10)]
    np.testing.assert_allclose(classes["accuracy"], expected)
    shards = pd.read_csv(outcome.folder / "shards.csv").query("round == 2").set_index("client")
    for client, rows in setup.shards.items():
        assert shards.loc[client, "accuracy"] == predictions(outcome, rows, setup)[0].mean()
    last = outcome.rounds.iloc[-1]
    assert last["balanced_accuracy"] == pytest.approx(np.mean(expected))
    assert last["client_accuracy"] == pytest.approx(shards["accuracy"].mean())
    assert last["worst_client_accuracy"] == shards["accuracy"].min()
    assert outcome.rounds["backward_transfer"].iloc[0] == 0
    assert last["drift"] > 0
    train = setup.train.labels[np.concatenate(setup.train.partitions)]
    commonest = np.bincount(train).argmax()
    assert outcome.summary["majority_accuracy"] == (setup.test.labels == commonest).mean()
    assert outcome.summary["dropped"] == 0


def test_without_held_out_samples_there_are_no_client_accuracies(simulate):
    outcome = simulate(rounds=1)
    assert outcome.rounds["client_accuracy"].isna().all()
    assert not (outcome.folder / "shards.csv").exists()


@pytest.mark.parametrize("strategy", ["parallel(average_heads=False)", "sflv3()", "local()"])
def test_private_models_are_tested_on_their_own_shards(simulate, strategy):
    """A client with two classes does better on its own than on everybody's samples."""
    outcome = simulate(
        strategy=strategy, holdout=0.2, rounds=6, batch_size=16,
        partition="pathological(num_classes_per_partition=2)",
    )  # fmt: skip
    shards = pd.read_csv(outcome.folder / "shards.csv")
    assert (shards.groupby("round").size() == 6).all()
    last = outcome.rounds.iloc[-1]
    assert last["client_accuracy"] > last["accuracy"] + 0.2
    assert last["drift"] > 0


@pytest.mark.parametrize("sizes", [[400, 1, 200], [1, 400, 200]])
def test_clients_too_small_to_hold_anything_back_are_left_out(simulate, sizes):
    changes = {"clients": 3, "holdout": 0.2, "partition": f"size(partition_sizes={sizes})"}
    for strategy in ("sflv3", "sflv1"):
        outcome = simulate(strategy=strategy, **changes)
        shards = pd.read_csv(outcome.folder / "shards.csv").query("round == 2")
        assert shards["client"].tolist() == [k for k, size in enumerate(sizes) if size > 1]


def test_forgetting_goes_on_after_a_resume(simulate, resume):
    """Also from a checkpoint long before the last row: what came later never was."""
    changes = {"rounds": 7, "checkpoint_every": 2, "holdout": 0.2}
    whole = simulate(**changes)

    def stop(row, result):
        if row["round"] == 3:  # the checkpoint is that of round 2
            early.append((whole.folder.parent / "run2" / "checkpoint.safetensors").read_bytes())
        if row["round"] == 6:
            raise KeyboardInterrupt

    early = []
    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, **changes)
    (whole.folder.parent / "run2" / "checkpoint.safetensors").write_bytes(early[0])
    stopped = type(whole)(whole.folder.parent / "run2")
    resume(stopped)
    for name in ("classes.csv", "shards.csv"):
        assert pd.read_csv(stopped.folder / name).equals(pd.read_csv(whole.folder / name))
    columns = ["backward_transfer", "performance_gap", "jain", "drift"]
    pd.testing.assert_frame_equal(stopped.rounds[columns], whole.rounds[columns])
