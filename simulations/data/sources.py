"""A data set before its images are decoded: two splits, a column of images, one of labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from simulations.data.columns import image_columns, label_column
from simulations.data.encoded import EncodedImages
from simulations.data.images import DataError
from simulations.data.labels import Classes, Codes, read
from simulations.data.splits import Decision, Split, hold_out
from simulations.data.walking import listed

COLUMNS = "dataset=...(image='...', label='...')"

__all__ = ["DataError", "Source", "source"]


@dataclass(frozen=True, eq=False)
class Source:
    """A data set before its images are decoded.

    Attributes
    ----------
    train, test : Split
        Disjoint.
    train_labels, test_labels : array
        (n,) int64, places among `class_names`.
    image, label : str
        Names of the two columns that are used.
    class_names : list[str]
        Class 0, 1, ...
    is_held_out : bool
        Whether the test images were taken from the training split.
    decisions : list of Decision
        What was decided about the data.
    """

    train: Split
    test: Split
    train_labels: Codes
    test_labels: Codes
    image: str
    label: str
    class_names: list[str]
    is_held_out: bool = False
    decisions: list[Decision] = field(default_factory=list)

    def take(self, train: NDArray[Any], test: NDArray[Any]) -> Source:
        """Return some rows of both splits, by their places or by masks."""
        return replace(
            self,
            train=self.train.take(train),
            test=self.test.take(test),
            train_labels=self.train_labels[train],
            test_labels=self.test_labels[test],
        )

    def stores(self) -> list[EncodedImages]:
        """Return the images of both splits; one store where both are rows of one table."""
        halves = [self.train, self.test]
        if self.train.table is self.test.table:
            rows = np.union1d(self.train.rows, self.test.rows)
            halves = [Split(self.train.table, rows)]
        return [EncodedImages(half.table, self.image, half.rows) for half in halves]


def source(
    train: datasets.Dataset,
    test: datasets.Dataset | None,
    image: str,
    label: str,
    test_fraction: float,
    seed: int,
    *,
    drop_missing: str | None = None,
    train_rows: int = 0,
    test_rows: int = 0,
    decisions: Sequence[Decision] = (),
) -> Source:
    """Return a data set of which `image` and `label` name columns; empty ones are found.

    Parameters
    ----------
    train : datasets.Dataset
        The split to train on.
    test : datasets.Dataset, optional
        Without it a part of `train` is held out to test.
    image, label : str
        Names of columns.
    test_fraction, seed
        Share that is held out, drawn by the seed.
    drop_missing : str, optional
        Columns, with commas between: rows without a value in one of them are left out. None says
        that nobody could ask for that.
    train_rows, test_rows : int
        Take only so many rows, evenly spaced; 0 takes all.
    decisions : sequence of Decision
        What was decided before.

    Raises
    ------
    DataError
        A column or a label is missing, there is one class only, splits have other classes, or
        nothing is left to train or to test on.
    """
    decided = [*decisions]
    halves, image, name = _columns(train, test, image, label, decided)
    decided += _on_others(halves[0].table, image, name)
    wanted = {one.strip() for one in (drop_missing or "").split(",")} - {""}
    whole = [_complete(half, name, wanted, decided) for half in halves]
    for half, classes in whole:
        _check_labels(half, classes, name, can_drop=drop_missing is not None)
    names = _class_names([classes for _, classes in whole], decided)
    if len(names) < 2:
        raise DataError(f"needs two classes or more, column {name!r} has {len(names)}")
    labels = [classes.codes(names) for _, classes in whole]
    trained, answers = whole[0][0], labels[0]
    if test is None:
        kept, held = hold_out(answers, test_fraction, seed)
        tested, theirs = trained.take(held), answers[held]
        trained, answers = trained.take(kept), answers[kept]
        said = f"{len(held):,} of {len(kept) + len(held):,} images are held out to test, by class"
        decided.append(Decision("splits", said, "test_fraction=..."))
    else:
        tested, theirs = whole[1][0], labels[1]
    if not len(trained) or not len(tested):
        raise DataError(
            f"needs images to train and to test on; has {len(trained)} and {len(tested)}"
        )
    found = Source(trained, tested, answers, theirs, image, name, names, test is None, decided)
    return _some(found, train_rows, test_rows)


def _columns(
    train: datasets.Dataset,
    test: datasets.Dataset | None,
    image: str,
    label: str,
    decided: list[Decision],
) -> tuple[list[Split], str, str]:
    """Return the splits, and the names of their columns of images and labels."""
    tables, image, text = image_columns([train] if test is None else [train, test], image)
    label, more = label_column(train, label, image)
    decided += [*text, *more]
    if test is not None:
        label_column(test, label, image)
    halves = [Split.whole(table) for table in tables]
    return halves, image, label


def _on_others(table: datasets.Dataset, image: str, label: str) -> list[Decision]:
    """Name the columns that are neither images nor labels."""
    others = [name for name in table.features if name not in {image, label}]
    text = f"{len(others):,} are neither images nor labels: {listed(others)}"
    return [Decision("columns", text, COLUMNS)] if others else []


def _complete(
    half: Split, label: str, wanted: set[str], decided: list[Decision]
) -> tuple[Split, Classes]:
    """Leave out rows without a value in the columns `wanted`."""
    for column in sorted(wanted - {label, "label"}):
        if column not in half.table.features:
            raise DataError(f"drop_missing: no column {column!r}")
        values = half.column(column)
        there = np.array([value is not None and value == value for value in values], dtype=bool)
        half = _dropped(half, there, column, decided)
    classes = read(half, label)
    if classes.is_missing.any() and wanted & {label, "label"}:
        half = _dropped(half, ~classes.is_missing, label, decided)
        classes = read(half, label)
    decided += [one for one in classes.decisions if one not in decided]
    return half, classes


def _check_labels(half: Split, classes: Classes, label: str, can_drop: bool) -> None:
    """Raise DataError for rows without a label."""
    if count := int(classes.is_missing.sum()):
        first = int(half.rows[np.flatnonzero(classes.is_missing)[0]])
        advice = f"; dataset=...(drop_missing={label!r}) leaves them out" if can_drop else ""
        raise DataError(
            f"column {label!r}: {count:,} rows without a label, first row {first}{advice}"
        )


def _dropped(half: Split, there: NDArray[np.bool_], column: str, decided: list[Decision]) -> Split:
    count = int((~there).sum())
    text = f"{count:,} of {len(half):,} left out: no value in column {column!r}"
    decided.append(Decision("rows", text, "dataset=...(drop_missing='...')"))
    return half.take(there)


def _class_names(found: list[Classes], decided: list[Decision]) -> list[str]:
    """Return the names of classes in the order of the training split; splits must agree."""
    first, *rest = found
    for test in rest:
        strange = [name for name in test.names if name not in first.names]
        unseen = [name for name in first.names if name not in test.names]
        if strange:
            raise DataError(f"only the test split has the classes {listed(strange)}")
        if unseen and first.are_declared and test.are_declared:
            raise DataError(f"only the training split has the classes {listed(unseen)}")
        if unseen:
            decided.append(Decision("classes", f"no test image is of {listed(unseen)}"))
        if not strange and not unseen and test.names != first.names:
            text = "the test split lists the classes in another order; they are matched by name"
            decided.append(Decision("classes", text))
    return first.names


def _some(found: Source, train_rows: int, test_rows: int) -> Source:
    """Take some rows, evenly spaced: data sorted by class keep their class balance."""
    return found.take(*_spaced(found, train_rows, test_rows))


def _spaced(found: Source, train_rows: int, test_rows: int) -> Iterator[NDArray[np.int64]]:
    for half, rows, key in (
        (found.train, train_rows, "train_rows"),
        (found.test, test_rows, "test_rows"),
    ):
        if rows > len(half):
            raise DataError(f"{key}={rows}, but there are {len(half)}")
        yield np.arange(rows or len(half)) * len(half) // (rows or len(half))
