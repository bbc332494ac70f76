"""A lock: one process at a time writes into a folder of results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

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
    try:
        held = FileLock(folder / name).acquire(timeout=0)
    except Timeout:
        raise OutputError(f"out: another process is writing into {str(folder)!r}") from None
    except (NotImplementedError, OSError) as error:
        raise OutputError(f"out: {str(folder)!r} cannot be locked: {error}") from None
    with held:
        yield
