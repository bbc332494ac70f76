"""Ctrl-C before, between and after runs: no traceback, and the exit code that shells expect."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import typer
from typer.core import TyperGroup

from simulations.runs.signals import exit_code


class Stoppable(TyperGroup):
    """All commands; without it click would end with exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            typer.echo("stopped", err=True)
            raise typer.Exit(exit_code(error)) from None


SHOW_CURSOR = b"\x1b[?25h"
"""What a bar has hidden on a terminal."""


@contextmanager
def at_once() -> Iterator[None]:
    """End the process at the first Ctrl-C, while it imports and there is nothing to lose.

    Libraries that try an import swallow the exception, and are broken for whoever comes next.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: object) -> None:
    os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + b"stopped\n")
    os._exit(128 + number)
