"""Clusters of clients that hold the same classes, apart from all others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulations.data.private_members import Dealt
from simulations.data.ragged import Ragged


class LabelClusters(Dealt):
    """Partition by classes: a few clusters of clients, whose clients hold the same classes.

    Classes are dealt at random to so many groups, and clients to as many clusters; no class is in
    two groups. The rows of a group are dealt at random among the clients of its cluster. Groups
    and clusters differ by one class and one client at most, and clients of a cluster by one row.
    Every row has an owner. A client is without rows where its cluster has more clients than rows.

    Parameters
    ----------
    clusters : int
        From 1, which is IID, to the number of classes, or of clients if these are fewer.

    Raises
    ------
    ValueError
        Fewer than one cluster, or more than there are clients or classes.
    """

    def __init__(
        self, num_partitions: int, partition_by: str, clusters: int = 4, seed: int | None = 42
    ) -> None:
        if not isinstance(clusters, int) or clusters < 1:
            raise ValueError(f"clusters must be a whole number above 0, got {clusters!r}")
        super().__init__(num_partitions, partition_by, num_classes_per_partition=1)
        self.clients, self.clusters, self.seed = num_partitions, clusters, seed

    def deal(self, by_class: list[NDArray[np.int64]]) -> Ragged:
        """Deal classes and clients to clusters, and rows of a cluster among its clients."""
        for name, count in (("classes", len(by_class)), ("clients", self.clients)):
            if self.clusters > count:
                raise ValueError(f"{self.clusters} clusters of {count} {name}; take fewer clusters")
        draw = np.random.default_rng(self.seed)
        groups = np.array_split(draw.permutation(len(by_class)), self.clusters)
        members = np.array_split(draw.permutation(self.clients), self.clusters)
        held = dict[int, NDArray[np.int64]]()
        for classes, clients in zip(groups, members, strict=True):
            rows = draw.permutation(np.concatenate([by_class[one] for one in classes]))
            held.update(zip(clients.tolist(), np.array_split(rows, len(clients)), strict=True))
        return Ragged.of(held[client] for client in range(self.clients))
