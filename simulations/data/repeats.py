"""Rows of a table that name an image again: left out if they say the same, else refused."""

from __future__ import annotations

import os
from collections.abc import Mapping

import datasets
import numpy as np
import pandas as pd

from simulations.data.candidates import LABELS, usual
from simulations.data.images import DataError
from simulations.data.splits import Decision


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


def without(
    splits: Mapping[str, datasets.Dataset], label: str, table: str
) -> tuple[dict[str, datasets.Dataset], list[str], list[Decision]]:
    """Leave out rows of the library's tables that repeat others of their split.

    Returns
    -------
    splits : dict
    paths : list of str
        Of the images of all rows that are left, links followed.
    decisions : list of Decision
    """
    found, named, decisions = {**splits}, list[str](), list[Decision]()
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
        named += paths[~again].dropna().tolist()
    return found, named, decisions


def _path(cell: Mapping[str, str] | None) -> str | None:
    path = (cell or {}).get("path")
    return os.path.realpath(path) if path else None
