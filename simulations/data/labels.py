"""Labels: one class per image, whatever a column holds; what is missing is counted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulations.data.images import DataError
from simulations.data.splits import Decision, Split

Codes = NDArray[np.int64]

MISSING_WORDS = frozenset({"nan", "none", "null", "na", "n/a", ""})
"""Text labels that are often meant as no label."""


@dataclass(frozen=True)
class Classes:
    """Labels of a split.

    Attributes
    ----------
    values : list
        A whole number or text per row; None where it is missing.
    names : list of str
        Names of the classes, in their order.
    are_declared : bool
        Whether the file lists the names; else they are those that occur.
    decisions : list of Decision
    """

    values: list[Any]
    names: list[str]
    are_declared: bool
    decisions: list[Decision] = field(default_factory=list)

    @property
    def is_missing(self) -> NDArray[np.bool_]:
        """(n,) which rows have no label."""
        return np.fromiter((value is None for value in self.values), np.bool_, len(self.values))

    def codes(self, names: list[str]) -> Codes:
        """Return the place of each label among `names`, (n,); labels of two splits go by name."""
        place = {name: number for number, name in enumerate(names)}
        own = dict(enumerate(self.names)) if self.are_declared else {}
        code = {value: place[own.get(value, str(value))] for value in {*self.values}}
        return np.fromiter((code[value] for value in self.values), np.int64, len(self.values))


AS_TEXT = re.compile(r"[+]\d.*|-?0\d.*|\d+[eE]\d+")
"""Labels that look like numbers and are codes: 01, +1, 2e5."""


def as_text(labels: pd.Series[Any]) -> str:
    """Return the first label that is a code and no number, of labels as they are written."""
    written = labels.dropna().str.strip()
    return next(iter(written[written.str.fullmatch(AS_TEXT.pattern)]), "")


def read(split: Split, column: str) -> Classes:
    """Read the labels of a split.

    Raises
    ------
    DataError
        Several labels per image, numbers that are no classes, or values of another kind.
    """
    feature, values = split.table.features[column], split.column(column)
    decisions: list[Decision] = []
    if isinstance(feature, datasets.Sequence | datasets.List | list):
        values, text = _one_each(values, column)
        decisions.append(Decision("labels", text))
        inner = getattr(feature, "feature", None)
        feature = inner if isinstance(inner, datasets.ClassLabel) else _type_of(values)
    if isinstance(feature, datasets.ClassLabel):
        values = [None if value is None or value < 0 else value for value in values]
        decisions += _alike(feature.names)
        return Classes(values, list(feature.names), True, decisions)
    if not isinstance(feature, datasets.Value) or feature.dtype in {"binary", "large_binary"}:
        raise DataError(f"column {column!r} must hold whole numbers or text, holds {feature}")
    values = [None if value is None or value != value else value for value in values]  # NaN differs
    if feature.dtype.startswith(("float", "double", "decimal")):
        values = _whole(values, column)
        decisions.append(Decision("labels", f"the numbers in column {column!r} are read as whole"))
    names = [str(value) for value in sorted({value for value in values if value is not None})]
    if doubtful := [name for name in names if name.strip().lower() in MISSING_WORDS]:
        count = sum(str(value) in doubtful for value in values)
        decisions.append(
            Decision(
                "labels",
                f"{count:,} images are of the class {doubtful[0]!r}, a text that often "
                "means no label",
                "leave such rows out of the file, or store no value",
                is_warning=True,
            )
        )
    return Classes(values, names, False, [*decisions, *_alike(names)])


def _alike(names: list[str]) -> list[Decision]:
    """Warn of classes whose names differ only by case, blanks around them or zeros in front."""
    groups: dict[str, list[str]] = {}
    for name in names:
        bare = name.strip().casefold()
        groups.setdefault(bare.lstrip("0") if bare.isdecimal() else bare, []).append(name)
    said = []
    for bare, group in groups.items():
        if len(group) > 1:
            how = "zeros in front" if bare.isdecimal() or not bare else "case or blanks"
            text = f"classes {' and '.join(map(repr, group))} differ only by {how}"
            key = "writing them alike in the data, if they are one"
            said.append(Decision("labels", text, key, is_warning=True))
    return said


def _one_each(values: list[Any], column: str) -> tuple[list[Any], str]:
    """Return one label per row of lists: the only one, or the place of the only 1.

    Empty lists are missing labels.
    """
    values = [None if value is None or not len(value) else value for value in values]
    lists = [value for value in values if value is not None]
    lengths = {len(one) for one in lists}
    if lengths <= {1}:
        return [None if one is None else one[0] for one in values], "lists of one label are read"
    rows = [one for one in lists if one.count(1) == 1 and one.count(0) == len(one) - 1]
    if len(lengths) == 1 and len(rows) == len(lists):
        found = [None if one is None else one.index(1) for one in values]
        return found, f"lists with a single 1 in column {column!r} are read as classes (one-hot)"
    several = sum(len(one) > 1 for one in lists)
    raise DataError(
        f"column {column!r} holds several labels for {several:,} of {len(values):,} images; an "
        "image can have one class only: choose one, or name another column with label='...'"
    )


def _type_of(values: list[Any]) -> datasets.Value:
    kinds = {type(value) for value in values if value is not None}
    return datasets.Value("string" if str in kinds else "float64" if float in kinds else "int64")


def _whole(values: list[Any], column: str) -> list[Any]:
    """Return numbers as whole ones; DataError if that would round."""
    found = [value for value in values if value is not None]
    broken = [value for value in found if not float(value).is_integer()]
    if broken:
        raise DataError(
            f"column {column!r} holds {len(broken):,} numbers like {broken[0]:g}: that is a "
            "quantity, not a class; this program classifies. Name another column with label='...'"
        )
    return [None if value is None else int(value) for value in values]
