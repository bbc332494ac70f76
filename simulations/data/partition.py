"""Partitions: which client holds which samples, by the partitioners of flwr-datasets."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa
from flwr_datasets.partitioner import Partitioner
from numpy.typing import NDArray

from fl_split.seeds import derive
from fl_split.spec_errors import SpecError
from fl_split.specs import canonical, parse
from simulations.data.partitioners import FILLED_IN, PARTITIONS, Rows
from simulations.data.private_members import (
    ROW,
    columns,
    heeds_selection,
    in_one_piece,
    is_flowers,
    is_natural,
    read_column,
    row_lists,
)
from simulations.data.ragged import Ragged


class PartitionError(ValueError):
    """A partition that the data cannot satisfy, and why."""


@dataclass(frozen=True)
class Unheld:
    """What a partition leaves over: samples, classes and clients.

    Attributes
    ----------
    samples : int
        Training rows that no client holds.
    classes : list[str]
        Names of the classes of which no client holds a row, in the order of the data set.
    empty_clients : int
        Clients that hold no row; no round draws them.
    """

    samples: int
    classes: list[str]
    empty_clients: int = 0

    def __str__(self) -> str:
        """Return one sentence; an empty text if nothing is left over."""
        parts = []
        if self.samples:
            parts.append(f"nobody holds {self.samples:,} of the training images")
        if self.classes:
            parts.append(f"nobody holds an image of the classes {', '.join(self.classes)}")
        if self.empty_clients:
            is_one = self.empty_clients == 1
            they = "client holds no image and is" if is_one else "clients hold no image and are"
            parts.append(f"{self.empty_clients:,} {they} never drawn")
        return "; ".join(parts)


def split(
    table: datasets.Dataset,
    spec: str,
    *,
    clients: int,
    label: str,
    seed: int,
    held_out: bool = False,
) -> Ragged:
    """Return the row numbers of `table` that each client holds.

    Rows are shuffled first, since Flower's sizes-only partitioners cut consecutive rows.
    `held_out` says that a part of the data was held out to test, so that rows are numbered anew.

    Raises
    ------
    PartitionError
        More clients than samples, rows by client of data of which a part is held out to test,
        rows without a value in a column that the partition goes by, another number of clients
        than the partition makes, or the partitioner gives up.
    """
    if clients > len(table):
        raise PartitionError(f"clients: {clients} clients cannot share {len(table)} samples")
    try:
        partitioner = _build(spec, clients, label, seed)
    except SpecError as error:
        raise PartitionError(f"partition: {_first_sentence(error)}") from None
    if isinstance(partitioner, Rows) and held_out:
        raise PartitionError(
            "partition: rows by client need data with a test split, ((images, labels), "
            "(test images, test labels)); without it some of the rows are held out to test"
        )
    wanted = columns(partitioner)
    _check_columns(spec, wanted, table.column_names)
    is_known = is_flowers(partitioner) or isinstance(partitioner, Rows)
    shuffled = _shuffled(table, wanted if is_known else table.column_names, seed)
    if not heeds_selection(partitioner):
        shuffled = in_one_piece(shuffled)
    _check_values(shuffled, wanted)
    parts = _determined(partitioner, shuffled, spec, clients)
    if not len(parts.flat):
        raise PartitionError(f"partition: {spec!r} gives no client any sample")
    return parts


def unheld(
    partitions: Sequence[NDArray[np.int64]], labels: NDArray[np.int64], names: Sequence[str]
) -> Unheld:
    """Count what a partition leaves over; call it before samples are held out.

    Parameters
    ----------
    partitions : sequence of arrays
        Row numbers of each client.
    labels : array
        (n,) classes of all training rows, before any skew.
    names : sequence of str
        Names of the classes.
    """
    parts = Ragged.of(partitions)
    is_held = np.zeros(len(labels), dtype=bool)
    is_held[parts.flat] = True
    counts = np.bincount(labels[is_held], minlength=len(names))
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    return Unheld(int((~is_held).sum()), missing, int((parts.sizes == 0).sum()))


def hold_out(
    partitions: Sequence[NDArray[np.int64]], share: float, *, seed: int
) -> tuple[Ragged, dict[int, NDArray[np.int64]]]:
    """Take a random share of every client's rows away, rounded up, but never all of them.

    Returns
    -------
    partitions : Ragged
        What is left for training, in the order it had.
    shards : dict
        What was taken, by client; clients with fewer than two rows are not in it.
    """
    parts, shards = Ragged.of(partitions), dict[int, NDArray[np.int64]]()
    counts = np.minimum(np.ceil(share * parts.sizes).astype(np.int64), parts.sizes - 1).clip(0)
    is_kept = np.ones(len(parts.flat), dtype=bool)
    for client in np.flatnonzero(counts).tolist():
        rows, draw = parts[client], np.random.default_rng(derive(seed, "hold out", client))
        taken = np.sort(draw.permutation(len(rows))[: counts[client]])
        shards[client] = rows[taken]
        is_kept[parts.bounds[client] + taken] = False
    return Ragged(parts.flat[is_kept], parts.sizes - counts), shards


def resolved(spec: str) -> str:
    """Spell `spec` out with its defaults; SpecError if it names nothing we know."""
    return canonical(spec, PARTITIONS, FILLED_IN)


def _build(spec: str, clients: int, label: str, seed: int) -> Partitioner:
    given = {"num_partitions": clients, "partition_by": label, "seed": derive(seed, "partition")}
    return copy.deepcopy(parse(spec, PARTITIONS, given))  # an object takes data but once


def _shuffled(table: datasets.Dataset, wanted: Sequence[str], seed: int) -> datasets.Dataset:
    """Return `wanted` columns with the rows in a random order, and their numbers in column ROW."""
    numbers = pa.array(np.arange(len(table)))
    read = {name: read_column(table, name) for name in wanted}
    order = np.random.default_rng(derive(seed, "partition")).permutation(len(table))
    # A fingerprint of our own, since computing one costs more than partitioning.
    return datasets.Dataset(pa.table({**read, ROW: numbers}), fingerprint=ROW).select(order)


def _determined(
    partitioner: Partitioner, table: datasets.Dataset, spec: str, clients: int
) -> Ragged:
    """Let a partitioner share out a table; PartitionError if it does not, or to other clients."""
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # progress bars
            warnings.simplefilter("ignore")
            partitioner.dataset = table
            count = partitioner.num_partitions
            if count == clients:
                is_ours = isinstance(partitioner, Rows)
                return partitioner.row_lists() if is_ours else row_lists(partitioner)
    except Exception as error:  # each partitioner raises its own types
        raise PartitionError(
            f"partition: {spec!r} cannot be satisfied with {clients} clients: "
            f"{_first_sentence(error)}"
        ) from None
    of = ""
    if is_natural(partitioner):
        (column,) = columns(partitioner)
        of = f" of the {len(table.unique(column))} values of column {column!r}"
    raise PartitionError(f"partition: {spec!r} makes {count} partitions{of}; set clients={count}")


def _check_columns(spec: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Raise PartitionError if `spec` goes by a column that the data do not have."""
    for column in wanted:
        if column not in known:
            raise PartitionError(
                f"partition: {spec!r}: the data set has no column {column!r}; beside images it "
                f"has {', '.join(known)}"
            )


def _check_values(table: datasets.Dataset, wanted: Sequence[str]) -> None:
    """Raise PartitionError if rows have no value in a column that the partition goes by."""
    for column in wanted:
        missing = read_column(table, column).is_null(nan_is_null=True)
        if count := missing.true_count:
            raise PartitionError(
                f"partition: {count} of {len(table)} training rows have no value in column "
                f"{column!r}; drop them with dataset=local(path=..., drop_missing={column!r})"
            )


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of a partitioner's error; a page of numbers may follow it."""
    return " ".join(str(error).split()).partition(". ")[0]
