"""What programs share that test finished runs: how they are called, which runs, what they write."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from simulations.runs.results import SUMMARY


def arguments(doc: str | None, csv: str = "write the rows there") -> argparse.ArgumentParser:
    """Return a parser of folders, --csv, --json and --tiny; `csv` says what becomes of a file."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--csv", metavar="FILE", help=csv)
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--tiny", action="store_true", help="see whether it runs")
    return parser


def measured(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    train: Callable[[Path], object],
    rows_of: Callable[[Path], Iterable[Mapping[Any, Any]]],
) -> pd.DataFrame:
    """Return the rows of all runs in the folders, or of those that `train` makes if all is tiny."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as made:
        if options.tiny:
            train(Path(made))
        folders = [Path(made)] if options.tiny else options.folders
        runs = [file.parent for folder in folders for file in sorted(folder.rglob(SUMMARY))]
        rows = [row for run in runs for row in rows_of(run)]
    if not rows:
        parser.error("found no run that can be tested so; give folders of finished runs")
    return pd.DataFrame(rows)


def write_json(found: pd.DataFrame, file: str | None) -> None:
    """Write rows, with null for what has no number."""
    if file:
        Path(file).write_text(found.to_json(orient="records", indent=2, double_precision=15) + "\n")


def add_to_csv(found: pd.DataFrame, file: str | None) -> None:
    """Write rows behind those that the file holds, with six digits."""
    if file:
        before = [pd.read_csv(file)] if Path(file).exists() else []
        pd.concat([*before, found]).to_csv(file, index=False, float_format="%.6g")
