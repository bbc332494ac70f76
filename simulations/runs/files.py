"""Files of results: one door to write them, one to read them.

What cannot be written leaves nothing half written; what cannot be read is named with its fault.
"""

from __future__ import annotations

import csv
import errno
import json
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from rich.filesize import decimal

from simulations.runs.columns import COLUMNS, METRICS, SENT

ROUNDED = re.compile(r"\d(,\d+)?E[+-]?\d")
"""A number as spreadsheets shorten it; Python's own have a small e."""

WHOLE = {
    *(metric.name for metric in METRICS if metric.unit == "bytes"),
    *("round", "clients", "dropped", "samples", "client_steps"),
}
"""Columns of rounds.csv that hold whole numbers."""


class OutputError(ValueError):
    """An output folder that cannot be used."""


class WriteError(OutputError):
    """A file that could not be written, and why."""


class DamagedError(OutputError):
    """A file of results that is not as the run wrote it; `fault` says which, and what is wrong."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"{fault}; put the file back as the run wrote it")
        self.fault = fault


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system has against writing `path` into one line.

    Raises
    ------
    WriteError
        The block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(f"cannot write {str(path)!r}: {reason}{_room(error, path)}") from None


def write_whole(path: Path, data: bytes) -> None:
    """Write a whole file or nothing; WriteError if that fails."""
    part = path.with_name(f".{path.name}.part")  # hidden: readers of a folder skip it
    with writing(path):
        try:
            part.write_bytes(data)
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def append(path: Path, data: bytes) -> None:
    """Add all of `data` to the end of a file or nothing; WriteError if that fails."""
    with writing(path), path.open("ab", buffering=0) as file:
        before, rest = file.tell(), memoryview(data)
        try:
            while rest:  # a disk that is nearly full takes a part
                rest = rest[file.write(rest) :]
        except BaseException:
            file.truncate(before)
            raise


def make_folder(folder: Path) -> None:
    """Make `folder`; raise OutputError if that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"out: cannot make {str(folder)!r}: {error.strerror}") from None


def csv_bytes(rows: Sequence[Collection[Any]]) -> bytes:
    """Return rows of cells as they stand in a file."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def read_summary(path: Path) -> dict[str, Any]:
    """Read a run's summary; empty if there is none.

    Raises
    ------
    DamagedError
        It is torn, or none of a run.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from None
    try:
        found = json.loads(text)
    except ValueError as error:
        fault = f"torn or edited: {error}" if text.strip() else "empty"
        raise DamagedError(f"{path} is {fault}") from None
    if not isinstance(found, dict) or not isinstance(found.get("status"), str):
        raise DamagedError(f"{path} is no summary of a run: it has no status")
    return found


def read_rounds(path: Path) -> pd.DataFrame:
    """Read the rows of a run's table that are written to their end; none if there is no file.

    Raises
    ------
    DamagedError
        It is no table of rounds any more, or not its numbers.
    """
    frame = read_table(path, ("round", "accuracy", *SENT))
    for name in ("round", *SENT):
        if len(frame) and not pd.api.types.is_integer_dtype(frame[name]):
            raise DamagedError(
                f"{path}: column {name} holds no whole numbers any more, as when a spreadsheet "
                "has rounded or cut them"
            )
    return frame


def read_parts(folder: Path) -> pd.DataFrame:
    """Read all Parquet files of a folder as one table.

    Raises
    ------
    DamagedError
        One of them cannot be read.
    """
    try:
        return pd.read_parquet(folder)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        for part in sorted(folder.glob("*.parquet")):
            try:
                pd.read_parquet(part)
            except (OSError, ValueError):
                raise DamagedError(f"{part} is torn or no Parquet file") from None
        raise DamagedError(f"{folder} cannot be read as one table: {error}") from None


def read_table(path: Path, needed: Sequence[str]) -> pd.DataFrame:
    """Read the whole rows of a CSV file with these columns of numbers; none without a file.

    Raises
    ------
    DamagedError
        It is no such table.
    """
    text = _text(path)
    whole = text[: text.rfind("\n") + 1]
    if not whole.strip():
        return pd.DataFrame(columns=[*needed])
    try:
        frame = pd.read_csv(StringIO(whole))
    except ValueError as error:  # pandas' own errors are ValueErrors
        raise DamagedError(f"{path} is no table: {error}") from None
    check_columns(path, [str(name) for name in frame.columns], needed)
    for name in needed:
        if len(frame) and not pd.api.types.is_numeric_dtype(frame[name]):
            odd = pd.to_numeric(frame[name], errors="coerce").isna()
            value = frame[name][odd].iloc[0] if odd.any() else frame[name].iloc[0]
            raise DamagedError(f"{path}: column {name} holds {value!r}, no number")
    return frame


def read_cells(path: Path, rounds: int) -> list[list[str]]:
    """Read the head and the first rows of a run's table, cell by cell, to go on with them.

    Raises
    ------
    DamagedError
        A row is missing or is another, or numbers are not those that were written.
    """
    text = _text(path)
    lines = [row for row in csv.reader(StringIO(text[: text.rfind("\n") + 1])) if row]
    head = lines[0] if lines else []
    check_columns(path, head, COLUMNS)
    if len(lines) <= rounds:
        raise DamagedError(f"{path} has {len(lines) - 1} rounds, the checkpoint {rounds}")
    for number, row in enumerate(lines[1 : rounds + 1], start=1):
        if len(row) != len(head) or row[head.index("round")] != str(number):
            raise DamagedError(f"{path}: line {number + 1} is not the row of round {number}")
        for name, cell in zip(head, row, strict=True):
            is_cut = name in WHOLE and not cell.isdecimal()
            if is_cut or ROUNDED.search(cell):
                raise DamagedError(
                    f"{path}: column {name} of round {number} is {cell!r}: not what was written, "
                    "as when a spreadsheet has rounded it"
                )
    return lines[: rounds + 1]


def check_columns(path: Path, found: Sequence[str], needed: Sequence[str]) -> None:
    """Raise DamagedError unless a table has the columns `needed`."""
    missing = [name for name in needed if name not in found]
    if not missing:
        return
    others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    cause = "semicolons stand between its cells" if ";" in "".join(found) else "edited, or another"
    raise DamagedError(f"{path} has no column {missing[0]}{others} ({cause})")


def _text(path: Path) -> str:
    """Read text, with or without a byte-order mark, with any ends of lines; empty if missing."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from None


def _room(error: OSError, path: Path) -> str:
    """Say what limits the size of files there."""
    if error.errno == errno.EFBIG:
        return " for a limit on files that this process has (ulimit -f)"
    folder = next(one for one in path.absolute().parents if one.exists())
    return f"; {decimal(shutil.disk_usage(folder).free)} are free there"
