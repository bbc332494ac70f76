"""How processes that train give memory back to the system: late."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's names and numbers (mallopt(3))."""


def keep_freed_memory() -> None:
    """Let this process keep what one step frees for the next one, up to 256 MiB.

    By default glibc maps every large tensor afresh and unmaps it when it is freed; the page
    faults cost some 8 % of the CPU time of a small model. Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest that glibc takes
        mallopt(M_TRIM_THRESHOLD, 2**28)
