"""Names of runs: each is the name of a folder, and what tables and figures call the run."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import PurePath

from fl_split.spec_errors import SpecError

MOST_BYTES = 200
"""Of a name: most file systems hold 255, encrypted ones less."""

TAKEN = {".csv", ".json", ".lock", ".parquet", ".part", ".safetensors", ".svg", ".toml", ".txt"}
"""Ends of names that files of results have."""


def check_name(name: str, where: object) -> None:
    """Raise SpecError if `name` cannot be a run's; `where` it was given is named."""
    if reason := _flaw(name):
        shown = name if len(name) <= 60 else f"{name[:57]}..."
        raise SpecError(f"{where}: name must be usable as a folder's, got {shown!r}: {reason}")


def _flaw(name: str) -> str:
    """Say why `name` is none of a folder that all of us can use; nothing if it is."""
    if not name:
        return "it is empty"
    if name.startswith("."):
        return "a folder whose name begins with a dot is hidden"
    if strange := [letter for letter in name if letter in "/\\" or not letter.isprintable()]:
        return f"a folder's name has no {strange[0]!r}"
    if name != name.strip():
        return "it begins or ends in a space"
    if len(name.encode()) > MOST_BYTES:
        return f"it has {len(name.encode())} bytes, {MOST_BYTES} are allowed"
    if (end := PurePath(name).suffix.lower()) in TAKEN:
        return f"a file of results may be called so; give a name that does not end in {end}"
    return ""


def check_apart(names: Iterable[str]) -> None:
    """Raise SpecError if two names are one, or are one on a file system that ignores capitals."""
    seen: dict[str, str] = {}
    for name in names:
        alike = unicodedata.normalize("NFC", name).casefold()
        if (other := seen.get(alike)) == name:
            raise SpecError(f"two runs are called {name!r}; give them different names")
        if other is not None:
            raise SpecError(
                f"runs {other!r} and {name!r} differ only in capitals, or in how letters are "
                "coded; some file systems do not tell them apart; give them different names"
            )
        seen[alike] = name
