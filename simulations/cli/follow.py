"""A report of runs that still go on, made anew until they have ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import typer

from simulations.cli.terminal import err, out
from simulations.report.live import Live
from simulations.report.page import build, older_marks, write
from simulations.report.tables import ReportTable
from simulations.runs.signals import exit_code, terminable
from simulations.studies.watch import (
    TITLES,
    Snapshot,
    cells_of,
    headline,
    is_over,
    look_below,
    remarks,
)


def follow_runs(
    folders: Sequence[Path], output: Path, baseline: str | None, form: str, every: int
) -> None:
    """Write a page every so many seconds while runs go on; return when all have ended.

    Ctrl-C or SIGTERM leaves a page that says so and does not reload.

    Raises
    ------
    ValueError
        A folder without runs, or a page that cannot reload.
    """
    if form != "html":
        raise ValueError(f"--follow writes HTML, which reloads itself; got {str(output)!r}")
    seen, told = _look(folders), ""
    try:
        with terminable():
            while not is_over(seen):
                moment = time.strftime("%Y-%m-%d %H:%M:%S")
                live = Live(f"Live, as of {moment}: {headline(seen)}.", every)
                news = _write(folders, output, baseline, live, seen)
                if news != told:
                    out.print(news, markup=False, highlight=False, soft_wrap=True)
                told = news
                time.sleep(every)
                seen = _look(folders)
    except KeyboardInterrupt as error:
        live = Live(f"Not followed to the end: {headline(seen)}.")
        news = _write(folders, output, baseline, live, seen)
        err.print(f"stopped; {news}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(exit_code(error)) from None
    for line in remarks(seen):
        err.print(line, markup=False, highlight=False, soft_wrap=True)
    if not any(one.status == "complete" for one in seen):  # there will be no other page
        _write(folders, output, baseline, Live("No run is complete."), seen)


def _look(folders: Sequence[Path]) -> list[Snapshot]:
    """Read the state of all runs."""
    seen = []
    for folder in folders:
        found = look_below(folder)
        if not found:
            raise ValueError(f"no runs in {str(folder)!r}")
        seen += found
    return seen


def _write(
    folders: Sequence[Path],
    output: Path,
    baseline: str | None,
    live: Live,
    seen: Sequence[Snapshot],
) -> str:
    """Write the page, if there is anything to show yet; return what came of it."""
    try:
        page = build(folders, baseline, older_marks(output), live, _state(seen))
    except ValueError as error:
        return f"waiting: {error}"
    write(page, output, "html")
    return f"following: {output}"


def _state(seen: Sequence[Snapshot]) -> ReportTable:
    """Return the runs as `fl-split watch` shows them."""
    rows = [cells_of(one) for one in seen]
    data = pd.DataFrame(rows, columns=[*TITLES])
    caption = f"When this page was made: {headline(seen)}."
    return ReportTable("now", "Now", caption, TITLES, rows, data)
