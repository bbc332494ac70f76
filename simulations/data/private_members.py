"""All that is private to datasets and flwr-datasets; each with its reason.

The libraries have no public place to choose whose classes or which rows are whose, give rows of
one partition at a time, and read a selection of rows one by one. A new version of them may break
this file and nothing else.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    GroupedNaturalIdPartitioner,
    IidPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
    ShardPartitioner,
)
from numpy.typing import NDArray

from simulations.data.ragged import Ragged

ROW = "fl_split_row"
"""Column that carries row numbers through a partitioner."""

DRAWS = 11
"""Draws that a Dirichlet partition makes to meet its smallest size; Flower's number."""


class Dirichlet(DirichletPartitioner):  # type: ignore[misc]  # has no types
    """Partition by classes: each class is dealt out unevenly, by shares drawn at random.

    The shares of a class are drawn from a Dirichlet distribution, as in Yurochkin et al.
    (ICML 2019). Partitions are those of Flower's class to the bit, made for all clients at once.

    Parameters
    ----------
    alpha : float or list[float]
        Above 0; a smaller one is more skew. A list gives one for each client.
    min_partition_size : int
        All shares are drawn again, up to 10 times, until every client holds so many samples.
    self_balancing : bool
        Give nothing more to clients that hold more than the average so far.
    shuffle : bool
        Shuffle the samples of every client.
    """

    _partition_id_to_indices: Ragged | dict[int, list[int]]

    def _initialize_alpha(self, alpha: Any) -> NDArray[np.float64]:
        """Check `alpha` in the user's terms; Flower's errors may be a page of numbers."""
        is_list = isinstance(alpha, list | np.ndarray)
        found = np.ravel(alpha).tolist() if is_list else [alpha]
        for one in found:
            if not isinstance(one, int | float) or not 0 < one < math.inf:
                raise ValueError(f"alpha must be a number above 0, got {one!r}")
        if is_list and len(found) != self._num_partitions:
            raise ValueError(
                f"alpha has {len(found)} numbers for {self._num_partitions} clients; give one "
                "number, or one for each client"
            )
        return super()._initialize_alpha(alpha)

    def _determine_partition_id_to_indices_if_needed(self) -> None:
        """Deal out by operations on whole arrays, where Flower has loops over all clients."""
        if self._partition_id_to_indices:
            return
        rows, clients, least = len(self.dataset), self._num_partitions, self._min_partition_size
        if clients * least > rows:
            raise ValueError(
                f"min_partition_size={least} takes {clients * least} samples, there are {rows}; "
                f"take {rows // clients} or less"
            )
        by_class, fewest = rows_by_value(self.dataset, self._partition_by), []
        for _ in range(DRAWS):
            dealt = self._deal(by_class)
            fewest.append(int(dealt.sizes.min()))
            if fewest[-1] >= least:
                break
        else:
            raise ValueError(
                f"in {DRAWS} draws the smallest partition held {max(fewest)} samples at most; take "
                f"min_partition_size={max(fewest)}, fewer clients, or a larger alpha"
            )
        if self._shuffle:
            for part in dealt:
                self._rng.shuffle(part)
        self._partition_id_to_indices = dealt
        self._partition_id_to_indices_determined = True

    def _deal(self, by_class: list[NDArray[np.int64]]) -> Ragged:
        """Draw shares of every class, and give each client its part of the rows."""
        clients, owners = np.arange(self._num_partitions), []
        held = np.zeros(self._num_partitions, dtype=np.int64)
        for rows in by_class:
            shares = self._rng.dirichlet(self._alpha)
            if self._self_balancing:
                shares[held > len(self.dataset) / len(held)] = 0
                with np.errstate(invalid="ignore"):
                    shares = shares / np.cumsum(shares)[-1]  # one by one, as Flower's sum
            if not np.isfinite(shares).all():  # a class drawn for clients that hold enough
                least = self._alpha.min()
                raise ValueError(f"alpha={least:g} is too small for self_balancing=True")
            ends = (np.cumsum(shares) * len(rows)).astype(int)
            counts = np.diff(ends[:-1], prepend=0, append=len(rows))
            owners.append(np.repeat(clients, counts))
            held += counts
        order = np.argsort(np.concatenate(owners), kind="stable")
        return Ragged(np.concatenate(by_class)[order], held)


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


class Dealt(PathologicalPartitioner):  # type: ignore[misc]  # has no types
    """A base for rules of our own, which say in `deal` who holds which rows.

    What loads partitions is Flower's.
    """

    _partition_id_to_indices: Ragged | dict[int, list[int]]
    _partition_id_to_indices_determined: bool

    def deal(self, by_class: list[NDArray[np.int64]]) -> Ragged:
        """Return the rows of each client, given those of each class in the order of classes."""
        raise NotImplementedError

    def _determine_partition_id_to_indices_if_needed(self) -> None:
        if not self._partition_id_to_indices_determined:
            by_class = rows_by_value(self.dataset, self._partition_by)
            self._partition_id_to_indices = self.deal(by_class)
            self._partition_id_to_indices_determined = True


def is_flowers(partitioner: Partitioner) -> bool:
    """Tell whether flwr-datasets itself decides what `partitioner` returns as a partition."""
    return type(partitioner).load_partition.__module__.partition(".")[0] == "flwr_datasets"


def columns(partitioner: Partitioner) -> list[str]:
    """Return the columns that one of Flower's partitioners goes by."""
    found = getattr(partitioner, "_partition_by", None) or []
    return [found] if isinstance(found, str) else list(found)


def is_natural(partitioner: Partitioner) -> bool:
    """Tell whether the values of a column decide how many partitions there are."""
    return isinstance(partitioner, NaturalIdPartitioner | GroupedNaturalIdPartitioner)


def heeds_selection(partitioner: Partitioner) -> bool:
    """Tell whether partitions depend on whether rows were selected or are a table of their own.

    ``Dataset.unique`` gives values in the order of the table below a selection, by which one of
    Flower's partitioners forms groups; of those that are not Flower's nobody knows.
    """
    return not is_flowers(partitioner) or isinstance(partitioner, GroupedNaturalIdPartitioner)


def row_lists(partitioner: Partitioner) -> Ragged:
    """Return what column ROW of its data holds in every partition, read in one pass.

    A partitioner that is not Flower's, or keeps its rows elsewhere than those that we know,
    is asked for one partition after the other.
    """
    count = partitioner.num_partitions
    ends = {client: _numbers(partitioner.load_partition(client)) for client in {0, count - 1}}
    known = _known(partitioner, count)  # after the first partition, which decides all of them
    if known is not None:
        found = Ragged(_numbers(partitioner.dataset)[known.flat], known.sizes)
        if all(np.array_equal(found[client], rows) for client, rows in ends.items()):
            return found
    return Ragged.of(_numbers(partitioner.load_partition(client)) for client in range(count))


def _known(partitioner: Partitioner, count: int) -> Ragged | None:
    """Return the rows that Flower's partitioners have decided on; None if we do not know them."""
    if not is_flowers(partitioner):
        return None
    if isinstance(partitioner, IidPartitioner):  # decides nothing: cuts consecutive rows
        rows = len(partitioner.dataset)
        least, more = divmod(rows, count)
        return Ragged(np.arange(rows), np.full(count, least) + (np.arange(count) < more))
    held = getattr(partitioner, "_partition_id_to_indices", None)
    if isinstance(held, Ragged):
        return held
    if isinstance(held, dict) and held.keys() == set(range(count)):
        return Ragged.of(held[client] for client in range(count))
    return None


def _numbers(part: datasets.Dataset) -> NDArray[np.int64]:
    return read_column(part, ROW).to_numpy(zero_copy_only=False)


def read_column(part: datasets.Dataset, column: str) -> pa.Array:
    """Read a column as one array.

    The public way gives a chunk for each row of a selection: 10 s and 0.8 GB for a million rows.
    """
    if not hasattr(part, "_indices"):
        return part.select_columns(column).with_format("arrow")[:][column].combine_chunks()
    found = part.data.column(column).combine_chunks()
    if part._indices is None:
        return found
    return found.take(part._indices.column(0).combine_chunks())


def in_one_piece(part: datasets.Dataset) -> datasets.Dataset:
    """Return a selection of rows as a table, of which columns are read at once."""
    found = pa.table({name: read_column(part, name) for name in part.column_names})
    return datasets.Dataset(found, fingerprint=ROW)


def rows_by_value(part: datasets.Dataset, column: str) -> list[NDArray[np.int64]]:
    """Return the rows of each value of a column, values in order, rows in order."""
    found = read_column(part, column).dictionary_encode()
    values = found.dictionary.to_pylist()
    rank = np.empty(len(values), dtype=np.int64)
    rank[sorted(range(len(values)), key=values.__getitem__)] = np.arange(len(values))
    codes = rank[found.indices.to_numpy(zero_copy_only=False)]
    ends = np.cumsum(np.bincount(codes, minlength=len(values)))
    return np.split(np.argsort(codes, kind="stable"), ends[:-1])
