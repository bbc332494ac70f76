"""Splits: which is trained on and which is tested on, after their names or by holding out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from simulations.data.images import DataError

TRAIN = frozenset({"train", "training", "trn"})
TEST = frozenset({"test", "testing", "tst"})
VALIDATION = frozenset({"val", "valid", "validation", "dev", "eval", "evaluation"})


@dataclass(frozen=True)
class Decision:
    """Something that the program has decided about people's data.

    Attributes
    ----------
    about, text : str
        What it is about, in a word or two; what was decided, with counts.
    key : str
        What decides otherwise; empty if nothing does.
    is_warning : bool
        Whether the data may be other than people think.
    """

    about: str
    text: str
    key: str = ""
    is_warning: bool = False


@dataclass(frozen=True, eq=False)
class Split:
    """Some rows of a table.

    Attributes
    ----------
    table : datasets.Dataset
        As it was read; halves of one split share it.
    rows : array
        (n,) row numbers in the table, in the order in which they are used.
    """

    table: datasets.Dataset
    rows: NDArray[np.int64]

    @classmethod
    def whole(cls, table: datasets.Dataset) -> Split:
        """Return all rows of a table."""
        return cls(table, np.arange(len(table)))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def take(self, places: NDArray[Any]) -> Split:
        """Return rows by their places, or by a mask."""
        return Split(self.table, self.rows[places])

    def column(self, name: str) -> list[Any]:
        """Return the values of a column."""
        chosen = self.table.with_format("arrow").select_columns(name)[:].column(0)
        return chosen.take(self.rows).to_pylist()

    def others(self, image: str, label: str, codes: NDArray[np.int64]) -> datasets.Dataset:
        """Return the rows of all columns but that of images, as a table in memory.

        The column `label` holds classes by their numbers, in whatever form it was written.
        """
        names = [name for name in self.table.features if name not in {image, label}]
        numbers = pa.array(codes)
        if not names:
            return datasets.Dataset(pa.table({label: numbers}), fingerprint="rows")
        chosen = self.table.with_format("arrow").select_columns(names)[:]
        taken = chosen.take(self.rows).combine_chunks().append_column(label, numbers)
        return datasets.Dataset(taken.replace_schema_metadata(None), fingerprint="rows")


def kind(name: str) -> str:
    """Return ``train``, ``test`` or ``validation`` for names that mean it, else an empty text."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    found = [
        what
        for what, usual in (("train", TRAIN), ("test", TEST), ("validation", VALIDATION))
        if words & usual
    ]
    return found[0] if len(found) == 1 else ""


def choose(
    found: Mapping[str, datasets.Dataset], train: str, test: str, of: str
) -> tuple[str, str, list[Decision]]:
    """Choose what is trained and tested on.

    Parameters
    ----------
    found : Mapping
        Splits by name.
    train, test : str
        Names that were asked for; empty ones are chosen.
    of : str
        What the data set is called.

    Returns
    -------
    train, test : str
        Names; `test` is empty if there is no split to test on.
    decisions : list of Decision

    Raises
    ------
    DataError
        There is no such split, or several that would do, or one is to be both.
    """
    sizes = {name: f"{name!r} ({len(split):,})" for name, split in found.items()}
    for name in filter(None, (train, test)):
        if name not in found:
            raise DataError(f"{of!r} has no split {name!r}; it has {', '.join(found)}")
    chosen = train or _one(found, ["train"], "train", of) or (len(found) == 1 and next(iter(found)))
    if not chosen:
        raise DataError(
            f"{of!r} has the splits {', '.join(sizes.values())}; name one with train='...'"
        )
    if test == chosen:
        raise DataError(f"{of!r}: {chosen!r} is trained on, so it cannot be tested on too")
    rest = {name: split for name, split in found.items() if name != chosen}
    tested = test or _one(rest, ["test", "validation"], "test", of)
    unused = [sizes[name] for name in rest if name != tested]
    text = f"trained on {sizes[chosen]}"
    text += f", tested on {sizes[tested]}" if tested else ""
    text += f"; not used: {', '.join(unused)}" if unused else ""
    keys = "dataset=...(train='...', test='...')"
    is_plain = not unused and (chosen, tested) in {("train", "test"), ("train", "")}
    return chosen, tested, [] if is_plain else [Decision("splits", text, keys)]


def _one(found: Iterable[str], kinds: Sequence[str], key: str, of: str) -> str:
    """Return the split of the first kind that there is; DataError if it is there twice."""
    for wanted in kinds:
        names = [name for name in found if kind(name) == wanted]
        exact = [name for name in names if name == wanted]
        if len(names) > 1 and not exact:
            raise DataError(f"{of!r} has {', '.join(names)}; name one with {key}='...'")
        if names:
            return (exact or names)[0]
    return ""


def hold_out(
    labels: NDArray[np.int64], test_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return places to train and to test on: of each class a share, at least one of two samples."""
    draw = np.random.default_rng([seed, 0])
    held = []
    for value in np.unique(labels):
        rows = draw.permutation(np.flatnonzero(labels == value))
        held.append(rows[: min(len(rows) - 1, math.ceil(test_fraction * len(rows)))])
    test = np.sort(np.concatenate([*held, []])).astype(np.int64)
    return np.setdiff1d(np.arange(len(labels)), test), test
