"""Partitioners by name: those of flwr-datasets, label clusters, rows that are listed by client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import datasets
import numpy as np
from flwr_datasets import partitioner as flower
from flwr_datasets.partitioner import Partitioner
from numpy.typing import NDArray

from fl_split.tables import Table
from simulations.data.label_clusters import LabelClusters
from simulations.data.private_members import ROW, Dirichlet, Pathological, Shard
from simulations.data.ragged import Ragged


class Rows(Partitioner):  # type: ignore[misc]  # has no types
    """Give every client the rows that are listed for it.

    Parameters
    ----------
    rows : sequence of arrays
        Row numbers of the training split, by client, whole numbers from 0; no row twice. The
        data need a test split: what is held out of the training data would change the numbers.

    Raises
    ------
    ValueError
        A row stands in two lists, or twice in one, or is no whole number.
    """

    def __init__(self, rows: Sequence[NDArray[np.int64]]) -> None:
        super().__init__()
        for client, part in enumerate(map(np.asarray, rows)):
            if part.ndim != 1 or (part.size and not np.issubdtype(part.dtype, np.integer)):
                raise ValueError(
                    f"rows of client {client} must be a list of whole numbers, got "
                    f"{part.dtype} of shape {part.shape}"
                )
        self.rows = Ragged.of([np.asarray(part, dtype=np.int64) for part in rows])
        numbers, counts = np.unique(self.rows.flat, return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"row {int(numbers[counts > 1][0])} is given to a client twice")

    def __repr__(self) -> str:
        """Say how many clients there are."""
        return f"rows of {len(self.rows)} clients"

    @property
    def num_partitions(self) -> int:
        """Number of clients."""
        return len(self.rows)

    def row_lists(self) -> Ragged:
        """Return the rows of all clients, each in their order.

        Raises
        ------
        ValueError
            The data have no such row.
        """
        count, flat = len(self.dataset), self.rows.flat
        if (wrong := np.flatnonzero((flat < 0) | (flat >= count))).size:
            client = self.rows.owners[wrong[0]]
            raise ValueError(f"client {client} has rows that are not in 0..{count - 1}")
        return self.rows

    def load_partition(self, partition_id: int) -> datasets.Dataset:
        """Return the rows of a client, in their order."""
        return self.dataset.select(self._place[self.row_lists()[partition_id]])

    @cached_property
    def _place(self) -> NDArray[np.int64]:
        """Where each row stands in the data, which come in another order."""
        return np.argsort(self.dataset.with_format("arrow")[:][ROW].to_numpy())


def _distribution(
    distribution_array: list[list[float]],
    num_partitions: int,
    num_unique_labels_per_partition: int,
    partition_by: str,
    preassigned_num_samples_per_label: int,
    rescale: bool = True,
) -> Partitioner:
    """Give each client its share of each class, from a table (classes x clients)."""
    return flower.DistributionPartitioner(
        np.asarray(distribution_array),
        num_partitions,
        num_unique_labels_per_partition,
        partition_by,
        preassigned_num_samples_per_label,
        rescale,
    )


FILLED_IN = ("num_partitions", "partition_by", "seed")
"""Arguments of partitioners that come from the experiment unless given."""


PARTITIONS: Table[Callable[..., Partitioner]] = Table(
    Partitioner,
    "fl_split.partitions",
    {
        "continuous": flower.ContinuousPartitioner,
        "dirichlet": partial(Dirichlet, alpha=0.3, min_partition_size=0),
        "distribution": _distribution,
        "exponential": flower.ExponentialPartitioner,
        "grouped_natural": flower.GroupedNaturalIdPartitioner,
        "iid": flower.IidPartitioner,
        "inner_dirichlet": flower.InnerDirichletPartitioner,
        "label_clusters": LabelClusters,
        "linear": flower.LinearPartitioner,
        "natural": flower.NaturalIdPartitioner,
        "pathological": partial(
            Pathological, num_classes_per_partition=2, class_assignment_mode="first-deterministic"
        ),
        "shard": partial(Shard, num_shards_per_partition=2),
        "size": flower.SizePartitioner,
        "square": flower.SquarePartitioner,
    },
    FILLED_IN,
)
"""Short names for partitioners; arguments of Flower's are theirs. `num_partitions`,
`partition_by` and `seed` are filled in from the experiment unless given."""
