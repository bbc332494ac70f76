"""Standard output and error of any encoding, and when nobody reads them any more."""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import typer
from rich.console import Console

from simulations.cli.stopped import Stoppable
from simulations.runs.paths import PathNotice

PLAIN = "fl_split.plain"
"""What a stream does with letters that it cannot encode, by the name that Python knows it by."""

SHAPES = {
    "·": ".", "░": ":", "▒": "+", "▓": "%", "█": "#", "▁": "_", "▂": ".", "▃": "-", "▄": "=",
    "▅": "+", "▆": "*", "▇": "%", "…": "~", "±": "+-", "•": "*", "→": ">", "←": "<", "≤": "<",
    "≥": ">", "✓": "v", "✗": "x", "\u00d7": "x", "\u2013": "-", "\u2014": "-", "\u2212": "-",
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"',
}  # fmt: skip
"""ASCII for what our texts have, of equal width but for one, so that tables stay straight."""

LINES, DOTS = range(0x2500, 0x2580), range(0x2800, 0x2900)
"""Lines of tables and bars; the dots that turn while something loads."""


def plain(text: str) -> str:
    """Return ASCII that looks like `text`."""
    return "".join(map(_plain, text))


def _plain(letter: str) -> str:
    if letter.isascii():
        return letter
    if letter in SHAPES:
        return SHAPES[letter]
    if ord(letter) in LINES:
        name = unicodedata.name(letter)
        upright = "VERTICAL" in name or ("UP" in name and "DOWN" in name)
        level = "HORIZONTAL" in name or ("LEFT" in name and "RIGHT" in name)
        return "|" if upright and not level else "-" if level and not upright else "+"
    if ord(letter) in DOTS:
        return "*"
    return next((one for one in unicodedata.normalize("NFKD", letter) if one.isascii()), "?")


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Give a stream ASCII in place of what it cannot encode; it is a codec's error handler."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain(error.object[error.start : error.end]), error.end


codecs.register_error(PLAIN, _replace)


class Terminal(Console):
    """A console that a command outlives: when nobody reads any more, it goes on in silence."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on."""
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), (sys.stderr if self.stderr else sys.stdout).fileno())


class Commands(Stoppable):
    """All commands, help included: what they write fits the streams that there are."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Prepare the streams, then do as typer does."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # it was closed; a file opened later would take its place
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
            elif hasattr(stream, "reconfigure"):
                stream.reconfigure(errors=PLAIN)
        with notices(Console(stderr=True)):
            return super().main(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a value that an option does not take is one line, not a frame."""
        try:
            return super().invoke(ctx)
        except click.BadParameter as error:
            if isinstance(error, click.MissingParameter):
                raise
            line = f"error: {error.format_message()}"
            Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None


@contextmanager
def notices(shown: Console) -> Iterator[None]:
    """Show our own warnings as lines on a console; leave those of libraries alone."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Any, category: type[Warning], *more: Any, **other: Any) -> None:
            if issubclass(category, PathNotice):
                line = f"warning: {message}"
                shown.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                others(message, category, *more, **other)

        warnings.showwarning = show
        yield
