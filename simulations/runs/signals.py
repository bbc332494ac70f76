"""Signals that ask a process to end: they end a run as Ctrl-C does, and tear no file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """The system asks this process to end, as a batch system does when a job's time is up."""

    number = signal.SIGTERM


class HungUp(Terminated):
    """The terminal of this process was closed."""

    number = getattr(signal, "SIGHUP", signal.SIGTERM)  # not on Windows


ENDS: dict[int, type[Terminated]] = {kind.number: kind for kind in (HungUp, Terminated)}


def exit_code(error: KeyboardInterrupt) -> int:
    """Return the exit code of a process that a signal has ended, as shells count."""
    return 128 + getattr(error, "number", signal.SIGINT)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does; only a main thread can be interrupted.

    One that is ignored, as by nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise ENDS[number]

    before = {
        number: signal.signal(number, end)
        for number in ENDS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def undisturbed(*, forgets: bool = False) -> Iterator[None]:
    """Let signals that would interrupt wait for the end of the block, which writes something.

    With `forgets` those that came meanwhile are forgotten: the run is ending already.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)

    found = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDS)}
    before = {number: handler for number, handler in found.items() if callable(handler)}
    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came and not forgets:
        before[came[0]](came[0], None)
