"""Rows of tables that name an image again: left out if they say the same, else refused."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from simulations.data.candidates import LABELS, usual
from simulations.data.images import DataError
from simulations.data.splits import Decision
from simulations.data.walking import Pictures, listed


def repeats(paths: pd.Series, labels: pd.Series, splits: pd.Series, table: str) -> pd.Series[bool]:
    """Tell which rows name an image, its label and split again.

    Rows without a label or an image repeat nothing: they are counted where those are read.

    Raises
    ------
    DataError
        Rows name an image again with another label.
    """
    rows = pd.DataFrame({"path": paths, "label": labels, "split": splits})
    rows = rows[rows["label"].notna() & rows["path"].notna()]
    others = rows[rows.groupby("path")["label"].transform("first") != rows["label"]]
    if len(others):
        path, other = others.iloc[0][["path", "label"]]
        first = rows["label"][rows["path"] == path].iloc[0]
        raise DataError(
            f"{table}: {len(others):,} rows name an image that an earlier row names with another "
            f"label; the first, {os.path.basename(path)!r}, is {str(first)!r} and {str(other)!r} "
            f"in column {labels.name!r}: leave one row for each image"
        )
    return rows.duplicated().reindex(paths.index, fill_value=False)


def left_out(again: pd.Series[bool], table: str) -> list[Decision]:
    """Say how many rows repeat others."""
    text = f"{int(again.sum()):,} rows of {table} repeat an earlier one and are left out"
    return [Decision("files", text, is_warning=True)] if again.any() else []


def named_rows(paths: pd.Series, labels: pd.Series, table: str) -> pd.DataFrame:
    """Return which images a table names, as columns path, label and table."""
    rows = pd.DataFrame({"path": paths, "label": labels, "table": table})
    return rows[rows["path"].notna()]


def left(named: pd.DataFrame, files: Pictures, tables: Sequence[Path]) -> Iterator[Decision]:
    """Say how many images no row names, and how many rows name an image again.

    Raises
    ------
    DataError
        Two tables, or sheets, give an image other labels.
    """
    if rest := len({*map(str, files.paths)} - {*named["path"]}):
        text = f"{rest:,} images that {listed(tables)} does not name are left out"
        yield Decision("files", text, is_warning=True)
    again = named[named.duplicated("path", keep=False)]
    _check_labels(again)
    if twice := len(again) - again["path"].nunique():
        text = f"{twice:,} rows of {listed(tables)} name an image that an earlier row names"
        yield Decision("files", text, is_warning=True)


def _check_labels(again: pd.DataFrame) -> None:
    """Raise DataError if rows that name the same image have other labels."""
    rows = again[again["label"].notna()]
    rows = rows.assign(label=rows["label"].map(_as_name))
    others = rows[rows.groupby("path")["label"].transform("first") != rows["label"]]
    if len(others):
        path, label, table = others.iloc[0][["path", "label", "table"]]
        first = rows[rows["path"] == path].iloc[0]
        raise DataError(
            f"{others['path'].nunique():,} images have one label in a table and another in the "
            f"next; the first, {os.path.basename(path)!r}, is {first['label']!r} in "
            f"{first['table']} and {label!r} in {table}: leave one row for each image"
        )


def _as_name(label: object) -> str:
    """Return a label as a name: 1.0 of a column with empty cells is 1."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)


def without(
    splits: Mapping[str, datasets.Dataset], label: str, table: str
) -> tuple[dict[str, datasets.Dataset], pd.DataFrame, list[Decision]]:
    """Leave out rows of the library's tables that repeat others of their split.

    Returns
    -------
    splits : dict
    named : DataFrame
        Of all rows that are left, as of :func:`named_rows`; links are followed.
    decisions : list of Decision
    """
    found, decisions = {**splits}, list[Decision]()
    named = [named_rows(pd.Series(dtype=object), pd.Series(dtype=object), table)]
    for split, rows in splits.items():
        column = label or next(iter(usual(rows.features, LABELS)), "")
        if not {"image", column} <= {*rows.features}:
            continue  # which is refused where columns are found
        cells = rows.with_format("arrow")
        paths = pd.Series(map(_path, cells["image"][:].to_pylist()), dtype=object)
        values = [
            str(one) if isinstance(one, list) else one for one in cells[column][:].to_pylist()
        ]
        labels = pd.Series(values, name=column, dtype=object)
        again = repeats(paths, labels, pd.Series(split, index=paths.index), table)
        if again.any():
            found[split] = rows.select(np.flatnonzero(~again))
        decisions += left_out(again, table)
        named.append(named_rows(paths[~again], labels[~again], f"the {split} split"))
    return found, pd.concat(named), decisions


def _path(cell: Mapping[str, str] | None) -> str | None:
    path = (cell or {}).get("path")
    return os.path.realpath(path) if path else None
