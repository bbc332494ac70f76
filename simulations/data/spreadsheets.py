"""Spreadsheets: file names and labels of images that lie beside, or the pixels themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from simulations.data.candidates import IMAGES, LABELS, chosen, usual
from simulations.data.images import DataError
from simulations.data.labels import as_text
from simulations.data.repeats import left_out, named_rows, repeats
from simulations.data.splits import Decision, kind
from simulations.data.walking import Pictures, is_foreign, is_picture, listed

SUFFIXES = (".csv", ".tsv", ".xlsx")
SPLITS = ("split", "set", "subset", "fold", "partition", "usage", "phase")
"""Names of a column that says which split a row is of."""

TRIED = 20
"""Rows of a column that are tried as names of files."""


@dataclass(frozen=True)
class Sheet:
    """What a spreadsheet holds: splits, columns, what was decided, images that rows name.

    `named` is as of :func:`simulations.data.repeats.named_rows`.
    """

    splits: dict[str, datasets.Dataset]
    image: str
    label: str
    decisions: list[Decision] = field(default_factory=list)
    named: pd.DataFrame = field(default_factory=pd.DataFrame)


def read(file: Path, files: Pictures, image: str, label: str) -> Sheet:
    """Read a spreadsheet; `image` and `label` name its columns, empty ones are found.

    Raises
    ------
    DataError
        No column names images, or some names fit no file, or several columns may be the label.
    """
    sheets, decisions = _sheets(file)
    found = {name: _table(file, sheet, files, image, label) for name, sheet in sheets.items()}
    if len(found) == 1:
        (only,) = found.values()
        return replace(only, decisions=[*decisions, *only.decisions])
    for name, one in found.items():
        decisions += [one for one in one.decisions if one not in decisions]
        if {*one.splits} != {"train"}:
            raise DataError(
                f"{file.name}: sheet {name!r} is a split and has a column of splits too"
            )
    first = next(iter(found.values()))
    splits = {name: one.splits["train"] for name, one in found.items()}
    rows = [one.named.assign(table=f"the {name} sheet") for name, one in found.items()]
    return Sheet(splits, first.image, first.label, decisions, pd.concat(rows))


def images_named(file: Path, files: Pictures, image: str, label: str) -> set[Path]:
    """Return the images that a spreadsheet names; none if it cannot be read."""
    try:
        sheets, _ = _sheets(file)
        found: set[Path] = set()
        for sheet in sheets.values():
            for name in _naming(sheet, files, file, image, label)[:1]:
                for value in _text(sheet, name).dropna():
                    found.update(files.find(value, file.parent))
    except (DataError, OSError):
        return set()
    return found & {*files.paths}


Reader = partial[pd.DataFrame]
"""Reads a sheet, or some of its rows and columns."""


def _sheets(file: Path) -> tuple[dict[str, Reader], list[Decision]]:
    """Return what reads each sheet: those called like splits, else the first one."""
    if not _is_workbook(file):
        with open(file, encoding="utf-8-sig", errors="replace", newline="") as lines:
            first = lines.readline()
        comma = max(",;\t", key=first.count)
        return {"train": partial(_frame, file, sep=comma, encoding="utf-8-sig")}, []
    names = _frame(file, sheet_name=None, nrows=0)
    kinds = {name: kind(name) for name in names}
    taken = [name for name in kinds if kinds[name]] if "train" in kinds.values() else [*kinds][:1]
    split = {name: kinds[name] if len(taken) > 1 else "train" for name in taken}
    if len({*split.values()}) < len(split):
        raise DataError(f"{file.name} has the sheets {listed([*names])}; leave one for each split")
    said = ", ".join(map(repr, taken))
    rest = [name for name in names if name not in taken]
    text = f"sheets {said} of {file.name}" + (f"; not read: {listed(rest)}" if rest else "")
    decisions = [Decision("files", text, is_warning=bool(rest))] if len(names) > 1 else []
    return {split[name]: partial(_frame, file, sheet_name=name) for name in taken}, decisions


def _is_workbook(file: Path) -> bool:
    return file.suffix.lower() == ".xlsx"


def _frame(file: Path, **how: Any) -> Any:
    read = pd.read_excel if _is_workbook(file) else pd.read_csv
    try:
        found: Any = read(file, **how)
    except ImportError:
        raise DataError(
            f"{file.name} needs openpyxl: pip install 'fl-split[xlsx]', or save it as CSV"
        ) from None
    except Exception as error:  # readers raise a different type for every fault
        reason = str(error).strip().partition("\n")[0] or repr(error)
        advice = "; save it as UTF-8" if isinstance(error, UnicodeError) else ""
        raise DataError(f"cannot load {str(file)!r}: {reason}{advice}") from None
    return found if isinstance(found, dict) else found.rename(columns=str)


def _text(sheet: Reader, name: str) -> pd.Series[Any]:
    """Read a column as text, as its cells are written: 0001 is no 1."""
    return sheet(dtype=str, usecols=[[*sheet(nrows=0)].index(name)]).iloc[:, 0]


def _naming(sheet: Reader, files: Pictures, file: Path, image: str, label: str) -> list[str]:
    """Return the columns that name images, the likeliest first; labels do so last."""
    head = sheet(dtype=str, nrows=50 * TRIED)
    columns = [*map(str, head)]
    for what, name in (("image", image), ("label", label)):
        if name and name not in columns:
            raise DataError(f"no column {name!r} for {what}; columns: {', '.join(columns)}")
    if image:
        return [image]

    if bare := [name for name in columns if is_picture(Path(name))]:
        raise DataError(
            f"{file.name}: {bare[0]!r} is no name of a column; the first row names them"
        )

    def looks_like_one(value: str) -> bool:
        return is_picture(Path(value)) or is_foreign(Path(value))

    def names_files(name: str, looks: bool) -> bool:
        tried = head[name].dropna().head(TRIED)
        found = [looks_like_one(v) if looks else files.find(v, file.parent) for v in tried]
        return sum(map(bool, found)) > len(tried) / 2

    others = [name for name in columns if name != label]
    found = [name for name in others if names_files(name, False)]
    found = found or [name for name in others if names_files(name, True)]  # said to be missing
    first = usual(found, IMAGES)
    answers = usual(found, LABELS)
    rest = [name for name in found if name not in {*first, *answers}]
    return [*first, *rest] or answers


def _table(file: Path, sheet: Reader, files: Pictures, image: str, label: str) -> Sheet:
    """Read a sheet of names and labels, or of pixels: others fail where columns are found."""
    named = _naming(sheet, files, file, image, label)
    frame = sheet()
    if not named:
        column = _usual_label(frame, [label])
        frame, texts = _with_labels(frame, sheet, column) if column else (frame, [])
        return Sheet({"train": _packed(frame)}, "", label, texts)
    picture, first = chosen(named, "files", "column", "dataset=local(image='...')")
    paths = _paths(_text(sheet, picture), files, file)
    text = f"{len({*paths}):,} images are named in {file.name}, {first.text}"
    decisions = [Decision("files", text, first.key, first.is_warning)]
    split, more = _split_column(frame, [picture, label], file)
    label = label or _label(frame, [picture, split], file)
    frame = frame.assign(**{picture: paths})
    names = frame[split].map(lambda name: kind(str(name))) if split else _folders(paths, files)
    if not split and names.nunique() > 1:
        said = ", ".join(f"{name} ({n:,})" for name, n in names.value_counts().items())
        more = [Decision("splits", f"as the folders of the images say: {said}")]
    column = label or _usual_label(frame, [], picture)
    frame, texts = _with_labels(frame, sheet, column)
    again = repeats(frame[picture], frame[column], names, file.name)
    more = [*more, *texts, *left_out(again, file.name)]
    frame, names = frame[~again].drop(columns=[split] if split else []), names[~again]
    tables = {
        str(name): _packed(some).cast_column(picture, datasets.Image())
        for name, some in frame.groupby(names.to_numpy(), sort=False)
    }
    rows = named_rows(frame[picture], frame[column], str(file.relative_to(files.root)))
    return Sheet(tables, picture, label, [*decisions, *more], rows)


def are_texts(file: Path, label: str) -> bool:
    """Tell whether the labels of a table have zeros in front, which the library leaves out."""
    if file.suffix.lower() not in SUFFIXES:
        return False
    sheets, _ = _sheets(file)
    return any(
        bool(column) and as_text(_text(sheet, column)) != ""
        for sheet in sheets.values()
        for column in [_usual_label(sheet(nrows=0), [label])]
    )


def _usual_label(frame: pd.DataFrame, wanted: Sequence[str], other: str = "") -> str:
    """Return the column of labels: the one wanted, or usually so called; nothing if none is."""
    names = [name for name in frame if name != other]
    return next((name for name in [*wanted, *usual(names, LABELS)] if name in names), "")


def _with_labels(
    frame: pd.DataFrame, sheet: Reader, column: str
) -> tuple[pd.DataFrame, list[Decision]]:
    """Take labels as they are written where reading them as numbers would lose something."""
    is_number, is_typed = pd.api.types.is_numeric_dtype(frame[column]), _is_workbook(sheet.args[0])
    if pd.api.types.is_bool_dtype(frame[column]) or (is_number and is_typed):
        return frame, []
    text = _text(sheet, column)
    written = as_text(text)
    if not written and is_number:
        return frame, []
    said = f"column {column!r} is read as text, because of {written!r}"
    decisions = [Decision("labels", said)] if written else []
    return frame.assign(**{column: text}), decisions


def _folders(paths: list[str], files: Pictures) -> pd.Series[Any]:
    """Return the split of each image by the folder it lies in, if all folders say one."""
    root = str(files.root.absolute())
    kinds = {
        folder: next((what for part in Path(folder).parts if (what := kind(part))), "")
        for folder in {os.path.dirname(os.path.relpath(path, root)) for path in paths}
    }
    are_splits = "train" in kinds.values() and all(kinds.values())
    found = [kinds[os.path.dirname(os.path.relpath(path, root))] for path in paths]
    return pd.Series(found if are_splits else ["train"] * len(paths))


def _packed(frame: pd.DataFrame) -> datasets.Dataset:
    return datasets.Dataset.from_pandas(frame, preserve_index=False)


def _paths(column: pd.Series[Any], files: Pictures, sheet: Path) -> list[str]:
    found = [[] if pd.isna(one) else files.find(one, sheet.parent) for one in column]
    missing = {row: len(some) for row, some in enumerate(found) if len(some) != 1}
    if missing:
        twice = [row for row, count in missing.items() if count]
        row = (twice or [*missing])[0]
        why = (
            "fits several images: write its path"
            if twice
            else "is no image below it: write paths as they are from there"
        )
        raise DataError(
            f"{sheet.name}: {len(missing):,} of {len(column):,} rows name no image in "
            f"{str(files.root)!r}; the first, {str(column.iloc[row])!r}, {why}"
        )
    return [str(path) for (path,) in found]


def _split_column(frame: pd.DataFrame, others: list[str], file: Path) -> tuple[str, list[Decision]]:
    """Find the column that says which split a row is of; DataError for rows of none."""
    kinds: Mapping[str, pd.Series[Any]] = {
        name: frame[name].map(lambda value: kind(str(value)))
        for name in usual([name for name in frame if name not in others], SPLITS)
    }
    found = [name for name, some in kinds.items() if (some == "train").any()]
    if not found:
        return "", []
    name, text = chosen(found, "splits", "as column", "")
    said = ", ".join(f"{value!r} ({n:,})" for value, n in frame[name].value_counts().items())
    strange = frame[name][kinds[name] == ""]
    if len(strange):
        counts = strange.fillna("").astype(str).value_counts()
        shown = listed([f"{value!r} ({count:,})" for value, count in counts.items()])
        raise DataError(
            f"{file.name}: column {name!r} holds for {len(strange):,} of {len(frame):,} rows what "
            f"is no split: {shown}; write train, test or validation, or rename the column"
        )
    return name, [replace(text, text=f"{text.text} says: {said}")]


def _label(frame: pd.DataFrame, others: list[str], file: Path) -> str:
    """Name the only column left; nothing if one is usually so called, which is found later."""
    rest = [name for name in map(str, frame) if name not in others]
    if usual(rest, LABELS):
        return ""
    if len(rest) > 1:
        raise DataError(
            f"{file.name}: any of {', '.join(rest)} may be the label; name one with label='...'"
        )
    if not rest:
        raise DataError(
            f"{file.name} has no column of labels beside {others[0]!r}; if another table has, name "
            "it: local(path='.../train.csv')"
        )
    return rest[0]
