"""Memory: what processes keep between steps, what they occupy, and what is free."""

from __future__ import annotations

import ctypes
from pathlib import Path

import psutil

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's names and numbers (mallopt(3))."""

CGROUP = Path("/sys/fs/cgroup")


def keep_freed_memory() -> None:
    """Let this process keep what one step frees for the next one, up to 256 MiB.

    By default glibc maps every large tensor afresh and unmaps it when it is freed; the page
    faults cost some 8 % of the CPU time of a small model. Does nothing without glibc.
    """
    try:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    except (OSError, TypeError):  # as on Windows
        return
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest that glibc takes
        mallopt(M_TRIM_THRESHOLD, 2**28)


def available_bytes() -> int:
    """Memory that new processes can have without swapping, of the machine and of the cgroup."""
    free = psutil.virtual_memory().available
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, limit - used)


def resident_bytes(pid: int) -> int:
    """Memory that a process and its children occupy now; 0 when it has ended."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(member.memory_info().rss for member in family)
    except psutil.Error:
        return 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such control, or no limit ("max")
        return None
