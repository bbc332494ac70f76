"""Parts of a system model, and the laws by which they differ between clients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from fl_split.seeds import Purpose, generator
from fl_split.specs import STRICT

Role = Literal[
    "deadline", "devices", "dropouts", "first", "network", "none", "pool", "presence", "server"
]

Law = Literal["equal", "lognormal", "uniform", "zipf"]

Numbers = NDArray[np.float64]

MOST_RANKS = 100
"""Ranks that the law of Zipf draws from."""


class Part:
    """One part of a system model; `role` says which, and a system has at most one of each."""

    role: ClassVar[Role]


@dataclass(frozen=True, config=STRICT)
class NoSystem(Part):
    """No time is computed."""

    role: ClassVar = "none"


def factors(law: Law, spread: float, clients: int, seed: int, *path: int | Purpose) -> Numbers:
    """Draw what a quantity of each client is multiplied by, (clients,).

    - equal: 1.
    - lognormal: exp(spread * z), z standard normal; the median is 1.
    - uniform: between 1 - spread and 1 + spread; the mean is 1.
    - zipf: rank ** -spread, ranks drawn evenly from 1 to 100; the fastest have 1.

    Raises
    ------
    ValueError
        A spread that the law does not allow.
    """
    if spread < 0 or (law == "uniform" and spread >= 1):
        raise ValueError(f"spread must be at least 0, and below 1 for uniform, got {spread:g}")
    purpose, *place = path
    draw = generator(seed, purpose, *place)  # type: ignore[arg-type]
    if law == "equal" or not spread:
        return np.ones(clients)
    if law == "lognormal":
        normal = torch.randn(clients, generator=draw, dtype=torch.float64).numpy()
        return np.asarray(np.exp(spread * normal))
    even = torch.rand(clients, generator=draw, dtype=torch.float64).numpy()
    if law == "uniform":
        return np.asarray(1 + spread * (2 * even - 1))
    return np.asarray((1 + np.floor(MOST_RANKS * even)) ** -spread)


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read these columns of a CSV file, numbers from 0.

    Raises
    ------
    ValueError
        The file or a column is missing, or a cell is empty or no such number.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"no table in {str(path)!r}: {error}") from None
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]}; it needs {', '.join(columns)}")
    table = table[[*columns]].apply(pd.to_numeric, errors="coerce")
    wrong = table[(table.isna() | (table < 0)).any(axis=1)]
    if len(wrong):
        raise ValueError(
            f"{path}: line {wrong.index[0] + 2} has an empty cell, a negative number or none "
            f"({len(wrong):,} lines in all)"
        )
    return table


Stamp = tuple[int, int]
"""When a file was changed, and its size: files that are edited are read again."""


def stamp(path: Path) -> Stamp:
    """Return the stamp of a file; that of one that is missing is (0, 0)."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
