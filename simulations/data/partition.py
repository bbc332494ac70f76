"""Partitions: which client holds which samples, by the partitioners of flwr-datasets."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass

import datasets
import numpy as np
from flwr_datasets.partitioner import Partitioner
from numpy.typing import NDArray

from fl_split.seeds import derive
from fl_split.spec_errors import SpecError
from fl_split.specs import canonical, parse, resolve
from simulations.data.partitioners import FILLED_IN, PARTITIONS, ROW, Rows


class PartitionError(ValueError):
    """A partition that the data cannot satisfy, and why."""


@dataclass(frozen=True)
class Unheld:
    """Samples and classes that no client holds.

    Attributes
    ----------
    samples : int
        Training rows that no client holds.
    classes : list[str]
        Names of the classes of which no client holds a row, in the order of the data set.
    """

    samples: int
    classes: list[str]

    def __str__(self) -> str:
        """Return one sentence; an empty text if every sample and class has an owner."""
        parts = []
        if self.samples:
            parts.append(f"nobody holds {self.samples:,} of the training images")
        if self.classes:
            parts.append(f"nobody holds an image of the classes {', '.join(self.classes)}")
        return "; ".join(parts)


def split(
    table: datasets.Dataset,
    spec: str,
    *,
    clients: int,
    label: str,
    seed: int,
    held_out: bool = False,
) -> list[NDArray[np.int64]]:
    """Return the row numbers of `table` that each client holds.

    Rows are shuffled first, since Flower's sizes-only partitioners cut consecutive rows.
    `held_out` says that a part of the data was held out to test, so that rows are numbered anew.

    Raises
    ------
    PartitionError
        More clients than samples, rows by client of data of which a part is held out to test, or
        the partitioner gives up.
    """
    if clients > len(table):
        raise PartitionError(f"clients: {clients} clients cannot share {len(table)} samples")
    order = np.random.default_rng(derive(seed, "partition")).permutation(len(table))
    try:
        partitioner = _build(spec, clients, label, seed)
    except SpecError as error:
        raise PartitionError(f"partition: {_first_sentence(error)}") from None
    if isinstance(partitioner, Rows) and held_out:
        raise PartitionError(
            "partition: rows by client need data with a test split, ((images, labels), "
            "(test images, test labels)); without it some of the rows are held out to test"
        )
    _check_columns(spec, table.column_names)
    columns = table.with_format("arrow")[:].replace_schema_metadata(None)
    numbered = columns.append_column(ROW, [np.arange(len(table))])
    # A fingerprint of our own, since computing one costs more than partitioning.
    shuffled = datasets.Dataset(numbered, fingerprint=ROW).select(order)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # progress bars
            warnings.simplefilter("ignore")
            partitioner.dataset = shuffled
            count = partitioner.num_partitions
            parts = [partitioner.load_partition(number) for number in range(count)]
    except Exception as error:  # each partitioner raises its own types
        raise PartitionError(
            f"partition: {spec!r} cannot be satisfied with {clients} clients: "
            f"{_first_sentence(error)}"
        ) from None
    if count != clients:
        raise PartitionError(f"partition: {spec!r} makes {count} partitions; set clients={count}")
    if not any(len(part) for part in parts):
        raise PartitionError(f"partition: {spec!r} gives no client any sample")
    return [part.with_format("arrow")[:][ROW].to_numpy() for part in parts]


def unheld(
    partitions: Sequence[NDArray[np.int64]], labels: NDArray[np.int64], names: Sequence[str]
) -> Unheld:
    """Count samples and classes in no partition; call it before samples are held out.

    Parameters
    ----------
    partitions : sequence of arrays
        Row numbers of each client.
    labels : array
        (n,) classes of all training rows, before any skew.
    names : sequence of str
        Names of the classes.
    """
    is_held = np.zeros(len(labels), dtype=bool)
    is_held[np.concatenate(partitions)] = True
    counts = np.bincount(labels[is_held], minlength=len(names))
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    return Unheld(int((~is_held).sum()), missing)


def hold_out(
    partitions: list[NDArray[np.int64]], share: float, *, seed: int
) -> tuple[list[NDArray[np.int64]], dict[int, NDArray[np.int64]]]:
    """Take a random share of every client's rows away, rounded up, but never all of them.

    Returns
    -------
    partitions : list of arrays
        What is left for training, in the order it had.
    shards : dict
        What was taken, by client; clients with fewer than two rows are not in it.
    """
    kept, shards = list(partitions), {}
    for client, rows in enumerate(partitions):
        count = min(math.ceil(share * len(rows)), len(rows) - 1)
        if count > 0:
            draw = np.random.default_rng(derive(seed, "hold out", client))
            taken = np.sort(draw.permutation(len(rows))[:count])
            shards[client], kept[client] = rows[taken], np.delete(rows, taken)
    return kept, shards


def resolved(spec: str) -> str:
    """Spell `spec` out with its defaults; SpecError if it names nothing we know."""
    return canonical(spec, PARTITIONS, FILLED_IN)


def _build(spec: str, clients: int, label: str, seed: int) -> Partitioner:
    given = {"num_partitions": clients, "partition_by": label, "seed": derive(seed, "partition")}
    return copy.deepcopy(parse(spec, PARTITIONS, given))  # an object takes data but once


def _check_columns(spec: str, columns: list[str]) -> None:
    """Raise PartitionError if `spec` goes by a column that the data do not have."""
    wanted = resolve(spec, PARTITIONS)[1].get("partition_by", [])
    for column in [wanted] if isinstance(wanted, str) else wanted:
        if column not in columns:
            raise PartitionError(
                f"partition: {spec!r}: the data set has no column {column!r}; beside images it "
                f"has {', '.join(columns)}"
            )


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of a partitioner's error; a page of numbers may follow it."""
    return " ".join(str(error).split()).partition(". ")[0]
