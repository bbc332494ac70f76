"""Partitioners by name: those of flwr-datasets; two that leave classes or rows to nobody, mended.

Both subclasses use private members of flwr-datasets, which has no public place to choose whose
classes or which rows are whose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import datasets
import numpy as np
from flwr_datasets import partitioner as flower
from flwr_datasets.partitioner import Partitioner, PathologicalPartitioner, ShardPartitioner
from numpy.typing import NDArray

from fl_split.tables import Table


class Pathological(PathologicalPartitioner):  # type: ignore[misc]  # has no types
    """Partition by classes: a client holds samples of so many classes only.

    With ``class_assignment_mode="first-deterministic"`` (Li et al., ICDE 2022, NIID-Bench) client
    k holds class k modulo the number of classes, and draws its other classes. With fewer clients
    than classes that draw alone leaves classes without an owner. Each such class then takes the
    place of a class that most clients hold, at the last of these clients. So every class has an
    owner wherever clients x classes per client are as many as the classes.
    The modes "random" and "deterministic" are Flower's and may leave classes to nobody.
    """

    def _determine_partition_id_to_unique_labels(self) -> None:
        if (count := self._num_classes_per_partition) < 1:  # Flower gives one class for none
            raise ValueError(f"num_classes_per_partition must be 1 or more, got {count}")
        super()._determine_partition_id_to_unique_labels()
        if self._class_assignment_mode != "first-deterministic":
            return
        held = self._partition_id_to_unique_labels
        owners = Counter(label for labels in held.values() for label in labels)
        for missing in [label for label in self._unique_labels if not owners[label]]:
            spare = max(self._unique_labels, key=lambda label: owners[label])
            if owners[spare] < 2:
                return  # fewer places than classes
            last = max(client for client, labels in held.items() if spare in labels)
            held[last][held[last].index(spare)] = missing
            owners.update({spare: -1, missing: 1})


class Shard(ShardPartitioner):  # type: ignore[misc]  # has no types
    """Partition by shards: sort the rows by class, cut them, deal the shards out at random.

    McMahan et al. (AISTATS 2017). With ``num_shards_per_partition`` alone the sizes of shards
    differ by one row at most and every row is in a shard; where the shards divide the rows
    evenly, the partitions are Flower's. With ``shard_size`` the partitions are always Flower's,
    which may leave rows to nobody.
    """

    def _determine_partition_id_to_indices_if_needed(self) -> None:
        per_client = self._num_shards_per_partition
        if per_client is None or self._shard_size is not None:
            super()._determine_partition_id_to_indices_if_needed()
        elif not self._partition_id_to_indices:
            self._deal(self._num_partitions, per_client)

    def _deal(self, clients: int, per_client: int) -> None:
        """Give every client so many shards of the rows, which are sorted by class."""
        rows, count = len(self.dataset), clients * per_client
        if count > rows:
            raise ValueError(f"{count} shards of {rows} rows; take fewer clients or shards")
        shards = np.array_split(np.arange(rows), count)
        dealt = self._rng.permutation(count).reshape(clients, per_client)
        parts = [np.concatenate([shards[number] for number in numbers]) for numbers in dealt]
        held = {client: part.tolist() for client, part in enumerate(parts)}
        if self._shuffle:
            for indices in held.values():
                self._rng.shuffle(indices)
        self._partition_id_to_indices = held
        self._partition_id_to_indices_determined = True


ROW = "fl_split_row"
"""Column that carries row numbers through a partitioner."""


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
        self.rows = [np.asarray(part, dtype=np.int64) for part in rows]
        numbers, counts = np.unique(np.concatenate([*self.rows, []]), return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"row {int(numbers[counts > 1][0])} is given to a client twice")

    def __repr__(self) -> str:
        """Say how many clients there are."""
        return f"rows of {len(self.rows)} clients"

    @property
    def num_partitions(self) -> int:
        """Number of clients."""
        return len(self.rows)

    def load_partition(self, partition_id: int) -> datasets.Dataset:
        """Return the rows of a client, in their order."""
        place = np.argsort(self.dataset.with_format("arrow")[:][ROW].to_numpy())
        rows = self.rows[partition_id]
        if rows.size and not 0 <= rows.min() <= rows.max() < len(place):
            raise ValueError(f"client {partition_id} has rows that are not in 0..{len(place) - 1}")
        return self.dataset.select(place[rows])


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


PARTITIONS: Table[Callable[..., Partitioner]] = Table(
    Partitioner,
    "fl_split.partitions",
    {
        "continuous": flower.ContinuousPartitioner,
        "dirichlet": partial(flower.DirichletPartitioner, alpha=0.3, min_partition_size=0),
        "distribution": _distribution,
        "exponential": flower.ExponentialPartitioner,
        "grouped_natural": flower.GroupedNaturalIdPartitioner,
        "iid": flower.IidPartitioner,
        "inner_dirichlet": flower.InnerDirichletPartitioner,
        "linear": flower.LinearPartitioner,
        "natural": flower.NaturalIdPartitioner,
        "pathological": partial(
            Pathological, num_classes_per_partition=2, class_assignment_mode="first-deterministic"
        ),
        "shard": partial(Shard, num_shards_per_partition=2),
        "size": flower.SizePartitioner,
        "square": flower.SquarePartitioner,
    },
)
"""Short names for Flower's partitioners; arguments are theirs. `num_partitions`,
`partition_by` and `seed` are filled in from the experiment unless given."""

FILLED_IN = ("num_partitions", "partition_by", "seed")
"""Arguments of partitioners that come from the experiment unless given."""
