"""Clusters of clients with the same classes: each class and each client is in one of them."""

from itertools import combinations

import datasets
import numpy as np
import pytest

from simulations.data import partition
from simulations.data.partition import PartitionError, Unheld


def dealt(clusters, clients, counts, seed=0):
    """Partition rows with so many of each class; return labels of each client, and the rest."""
    labels = np.repeat(np.arange(len(counts)), counts)
    table = datasets.Dataset.from_dict({"label": labels.tolist()})
    spec = f"label_clusters(clusters={clusters})"
    parts = partition.split(table, spec, clients=clients, label="label", seed=seed)
    names = [str(number) for number in range(len(counts))]
    return [labels[rows] for rows in parts], partition.unheld(parts, labels, names)


def test_three_classes_go_to_three_clients_and_two_to_two():
    """Of 12 rows each: 36 rows for three, 24 for two, so twelve for every client."""
    for seed in range(5):
        held, nobodys = dealt(2, 5, [12] * 5, seed)
        groups = [frozenset(labels.tolist()) for labels in held]
        assert [len(labels) for labels in held] == [12] * 5 and nobodys == Unheld(0, [])
        large, small = sorted(set(groups), key=len, reverse=True)
        assert (len(large), len(small)) == (3, 2) and not large & small
        assert (groups.count(large), groups.count(small)) == (3, 2)
        assert np.bincount(np.concatenate(held)).tolist() == [12] * 5


def test_one_cluster_is_iid_and_as_many_as_classes_are_one_class_each():
    held, _ = dealt(1, 4, [40] * 3)
    assert [len(labels) for labels in held] == [30] * 4
    assert all(set(labels.tolist()) == {0, 1, 2} for labels in held)
    held, _ = dealt(3, 7, [40, 30, 20])
    owners = [sum(set(labels.tolist()) == {label} for labels in held) for label in range(3)]
    assert sorted(owners) == [2, 2, 3]
    assert [sum(map(len, held)), *np.bincount(np.concatenate(held))] == [90, 40, 30, 20]


def test_rows_of_a_cluster_are_drawn_without_regard_to_their_class():
    """400 of 800 rows, half of a class: the variance is 400 / 4 * 400 / 799 = 50.1."""
    counts = []
    for seed in range(10):
        held, _ = dealt(2, 4, [400] * 4, seed)
        counts += [np.unique(labels, return_counts=True)[1][0] for labels in held]
    deviations = np.array(counts) - 200
    assert np.abs(deviations).max() < 5 * 50.1**0.5
    assert 0.3 < np.mean(deviations**2) / 50.1 < 3


def test_the_seed_says_which_classes_and_which_clients_are_together():
    pairs = {"classes": set(), "clients": set()}
    for seed in range(40):
        held = [frozenset(labels.tolist()) for labels in dealt(2, 4, [10] * 4, seed)[0]]
        pairs["classes"].add(held[0])
        pairs["clients"].add(frozenset(k for k in range(4) if held[k] == held[0]))
    assert pairs["classes"] == {frozenset(two) for two in combinations(range(4), 2)}
    assert pairs["clients"] == {frozenset({0, other}) for other in (1, 2, 3)}
    again = [labels.tolist() for labels in dealt(2, 4, [10] * 4, 7)[0]]
    assert again == [labels.tolist() for labels in dealt(2, 4, [10] * 4, 7)[0]]


def test_a_cluster_of_more_clients_than_rows_has_empty_clients_who_are_counted():
    held, nobodys = dealt(2, 6, [1, 9])
    assert sorted(map(len, held)) == [0, 0, 1, 3, 3, 3]
    assert nobodys == Unheld(0, [], empty_clients=2)


@pytest.mark.parametrize(
    ("clusters", "clients", "message"),
    [
        (4, 9, "4 clusters of 3 classes; take fewer clusters"),
        (3, 2, "3 clusters of 2 clients; take fewer clusters"),
        (0, 5, "clusters must be a whole number above 0, got 0"),
        (1.5, 5, "clusters must be a whole number above 0, got 1.5"),
    ],
)
def test_clusters_that_cannot_be_are_refused_in_one_line(clusters, clients, message):
    with pytest.raises(PartitionError, match=f"^partition: 'label_clusters[^\n]*{message}$"):
        dealt(clusters, clients, [10] * 3)
