"""Ctrl-C before, between and after runs: no traceback, and the exit code that shells expect."""

from __future__ import annotations

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
