"""A lock: one process at a time writes into a folder of results."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simulations.runs.results import OutputError, make_folder

RUN = ".run.lock"
"""A hidden file: the process that writes a run holds a lock on it."""


@contextmanager
def alone(folder: Path, name: str = RUN) -> Iterator[None]:
    """Hold `folder`, by a lock on the hidden file `name` that the system frees with the process.

    Raises
    ------
    OutputError
        Another process holds it.
    """
    make_folder(folder)
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(f"out: another process is writing into {str(folder)!r}") from None
        yield
