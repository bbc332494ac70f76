"""Spreadsheets: file names and labels of images that lie beside, or the pixels themselves."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import datasets
import pandas as pd

from simulations.data.columns import LABELS, also_there
from simulations.data.folders import index
from simulations.data.images import DataError
from simulations.data.splits import Decision, kind

SUFFIXES = (".csv", ".tsv", ".xlsx")
SPLITS = ("split", "set", "subset", "fold", "partition", "usage", "phase")
"""Names of a column that says which split a row is of."""

TRIED = 20
"""Rows of a column that are tried as names of files."""


@dataclass(frozen=True)
class Sheet:
    """What a spreadsheet holds: splits by name, columns, and what was decided."""

    splits: dict[str, datasets.Dataset]
    image: str
    label: str
    decisions: list[Decision] = field(default_factory=list)


def read(file: Path, image: str, label: str) -> Sheet:
    """Read a spreadsheet; `image` and `label` name its columns, empty ones are found.

    Raises
    ------
    DataError
        No column names images, or some names fit no file, or several columns may be the label.
    """
    frame = _frame(file)
    for what, name in (("image", image), ("label", label)):
        if name and name not in frame:
            raise DataError(f"no column {name!r} for {what}; columns: {', '.join(map(str, frame))}")
    try:
        files = index(file.parent)
    except DataError:
        files = {}
    names = [*map(str, frame)]
    named = [image] if image else [name for name in names if _names_files(frame[name], files)]
    if not named:
        return _pixels(file, frame, label)
    picture = named[0]
    paths = _paths(frame[picture], files, file)
    split = next((k for k in names if k.lower() in SPLITS and _are_kinds(frame[k])), "")
    label, text = _label(frame, label, [picture, split], file)
    frame = frame.assign(**{picture: paths})
    decisions = [
        Decision(
            "files",
            f"{len(frame):,} images are named in column {picture!r} of {file.name}"
            f"{also_there(named)}",
            "dataset=local(image='...')",
        ),
        *text,
    ]
    known = {path for path in files.values() if path}
    if rest := len(known) - len(known & {Path(path) for path in paths}):
        decisions.append(
            Decision("files", f"{rest:,} images that {file.name} does not name are left out")
        )
    parts = {"train": frame}
    if split:
        parts = {kind(str(name)): some for name, some in frame.groupby(split, sort=False)}
        decisions.append(Decision("splits", f"as column {split!r} says"))
    return Sheet(
        {name: _table(some, picture) for name, some in parts.items()}, picture, label, decisions
    )


def _frame(file: Path) -> pd.DataFrame:
    try:
        if file.suffix.lower() == ".xlsx":
            return pd.read_excel(file).rename(columns=str)
        with open(file, encoding="utf-8-sig", newline="") as lines:
            first = lines.readline()
        comma = max(",;\t", key=first.count)
        return pd.read_csv(file, sep=comma, encoding="utf-8-sig").rename(columns=str)
    except ImportError:
        raise DataError(
            f"{file.name} needs openpyxl: pip install 'fl-split[xlsx]', or save it as CSV"
        ) from None
    except (OSError, ValueError, csv.Error, KeyError) as error:  # BadZipFile is none of these
        raise DataError(f"cannot load {str(file)!r}: {error}") from None


def _key(value: object) -> str:
    """Return a file name as the index has it: with slashes, without a leading dot."""
    text = str(value).strip()
    parts = PureWindowsPath(text).parts if "\\" in text else PurePosixPath(text).parts
    return "/".join(part for part in parts if part not in {".", "/"})


def _file(value: object, files: Mapping[str, Path | None]) -> Path | None:
    """Find the image that a cell names, by its path or its name."""
    key = _key(value)
    return files.get(key) or files.get(key.rpartition("/")[2])


def _names_files(column: pd.Series[Any], files: Mapping[str, Path | None]) -> bool:
    tried = column.dropna().head(TRIED)
    found = sum(_file(value, files) is not None for value in tried)
    return found > len(tried) / 2


def _paths(column: pd.Series[Any], files: Mapping[str, Path | None], sheet: Path) -> list[str]:
    found = [_file(value, files) for value in column]
    missing = [str(value) for value, path in zip(column, found, strict=True) if path is None]
    if missing:
        twice = [name for name in missing if _key(name) in files]
        why = "fits several images: write its path" if twice else "is no image below it"
        raise DataError(
            f"{sheet.name}: {len(missing):,} of {len(column):,} rows name no image in "
            f"{str(sheet.parent)!r}; the first, {(twice or missing)[0]!r}, {why}"
        )
    return [str(path) for path in found]


def _are_kinds(column: pd.Series[Any]) -> bool:
    kinds = {kind(str(value)) for value in column.unique()}
    return "train" in kinds and "" not in kinds


def _label(
    frame: pd.DataFrame, wanted: str, others: list[str], file: Path
) -> tuple[str, list[Decision]]:
    """Find the column of labels: the named one, one usually so called, or the only one left."""
    if wanted:
        return wanted, []
    rest = [name for name in map(str, frame) if name not in others]
    usual = [name for name in rest if name.lower() in LABELS]
    if len(rest) > 1 and not usual:
        raise DataError(
            f"{file.name}: any of {', '.join(rest)} may be the label; name one with label='...'"
        )
    if not rest:
        raise DataError(f"{file.name} has no column of labels beside {others[0]!r}")
    return (usual or rest)[0], []


def _table(frame: pd.DataFrame, image: str) -> datasets.Dataset:
    table = datasets.Dataset.from_pandas(frame, preserve_index=False)
    return table.cast_column(image, datasets.Image())


def _pixels(file: Path, frame: pd.DataFrame, label: str) -> Sheet:
    """Take a table whose numbered columns are pixels; others fail where columns are found."""
    return Sheet({"train": datasets.Dataset.from_pandas(frame, preserve_index=False)}, "", label)
