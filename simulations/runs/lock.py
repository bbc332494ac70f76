"""A lock: one process at a time writes into a folder of results, and others can tell which."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from simulations.runs.files import OutputError, make_folder, write_whole

RUN = ".run.lock"
"""A hidden file: the process that writes a run holds a lock on it."""


@contextmanager
def alone(folder: Path, name: str = RUN) -> Iterator[None]:
    """Hold `folder`, by a lock on the hidden file `name` that the system frees with the process.

    Raises
    ------
    OutputError
        Another process holds it, or it cannot be written to.
    """
    make_folder(folder)
    try:
        held = FileLock(folder / name).acquire(timeout=0)
    except Timeout:
        raise OutputError(f"out: another process is writing into {str(folder)!r}") from None
    except (NotImplementedError, OSError) as error:
        raise OutputError(f"out: {str(folder)!r} cannot be locked: {error}") from None
    with held:
        me = {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid())}
        write_whole(_holder(folder, name), json.dumps(me).encode() + b"\n")
        yield


def is_abandoned(folder: Path, name: str = RUN) -> bool:
    """Tell whether the process that held `folder` last has ended, as far as can be seen here.

    Not of a process on another machine, or of a folder that nobody has held.
    """
    try:
        last = json.loads(_holder(folder, name).read_text(encoding="utf-8"))
        is_here = last["host"] == socket.gethostname()
        return is_here and _began(last["pid"]) != last["began"] and not _is_held(folder / name)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _holder(folder: Path, name: str) -> Path:
    """Return the file that says which process holds a lock, or held it last."""
    return folder / f"{name}.holder"


def _began(pid: int) -> float:
    """Return when a process began, since numbers of processes are used again; 0 if it is none."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return round(process.create_time(), 1)
    return 0.0


def _is_held(path: Path) -> bool:
    """Tell whether somebody holds a lock: another container with the same name, for one."""
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # we may not write there
        return False
