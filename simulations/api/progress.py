"""A bar for each run that goes on, in a terminal or a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm import tqdm

from simulations.data.cache import Progress
from simulations.runs.news import News
from simulations.runs.server_app import Watch
from simulations.runs.setup import Setup
from strategies import RoundResult

Callback = Callable[[dict[str, Any], RoundResult], object]
"""Called after each round with its row of rounds.csv, and all there is to know about it."""


def is_watched() -> bool:
    """Tell whether somebody is looking: at a terminal, or at a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


@contextmanager
def counting(shows: bool) -> Iterator[Progress]:
    """Show a bar while many images are looked at or decoded; yield what is told of it."""
    with ExitStack() as opened:
        bars: dict[str, tqdm[Any]] = {}

        def told(text: str, done: int, total: int) -> None:
            if text not in bars:
                bar = tqdm(total=total, desc=text, disable=not shows, unit="image", leave=False)
                bars[text] = opened.enter_context(bar)
            bars[text].update(done - bars[text].n)

        yield told


@contextmanager
def watching(
    name: str, setup: Setup, callbacks: Sequence[Callback], shows: bool, done: int = 0
) -> Iterator[Watch]:
    """Show a bar with accuracy and bytes so far, and call back after each round."""
    experiment = setup.experiment
    news = News(name, experiment.rounds)
    with tqdm(
        total=experiment.rounds, initial=done, desc=name, disable=not shows, unit="round"
    ) as bar:

        def watch(row: dict[str, Any], result: RoundResult) -> None:
            bar.set_postfix_str(news.of_round(row), refresh=False)
            bar.update()
            for callback in callbacks:
                callback(row, result)

        yield watch
