"""Lines of text about a run in progress, for a terminal or a log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from simulations.runs.columns import SENT, VIRTUAL_SECONDS
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import unheld
from simulations.runs.files import read_rounds
from simulations.runs.results import ROUNDS
from strategies import RoundResult

TOLD = 10
"""Number of rounds, at equal distances, of which a log has a line."""

MOST_DROPPED = 3
"""Clients dropped in a round that have a line each; `clients.parquet` names all."""


@dataclass
class News:
    """Writes lines about one run; `sent` are the bytes so far, both ways, weights too.

    `seconds` are the virtual ones so far, of a run that has a system.

    Attributes
    ----------
    label : str
        Name of the run in lines.
    rounds : int
        Rounds of the whole run.
    """

    label: str
    rounds: int
    sent: int = 0
    seconds: float = 0.0

    def go_on(self, folder: Path, done: int) -> None:
        """Count what a run that is resumed has sent in its first `done` rounds."""
        rows = read_rounds(folder / ROUNDS)[:done]
        self.sent += int(rows[[*SENT]].to_numpy().sum())
        if VIRTUAL_SECONDS in rows:
            self.seconds += float(rows[VIRTUAL_SECONDS].sum())

    def of_round(self, row: Mapping[str, Any]) -> str:
        """Count a finished round; return accuracy and bytes so far."""
        self._add(row)
        accuracy = f"{100 * row['accuracy']:.1f} %"
        if row["client_accuracy"] is not None:
            accuracy += f" client {100 * row['client_accuracy']:.1f} %"
        time = f", {self.seconds:,.4g} s virtual" if VIRTUAL_SECONDS in row else ""
        return f"{accuracy}, {decimal(self.sent)} sent{time}"

    def line(self, row: Mapping[str, Any], news: str) -> list[str]:
        """Return a line for every tenth part of the rounds, else nothing."""
        if row["round"] % max(1, self.rounds // TOLD):
            return []
        return [f"{self.label}: round {row['round']}/{self.rounds} accuracy {news}"]

    def _add(self, row: Mapping[str, Any]) -> None:
        self.sent += sum(int(row[key]) for key in SENT)
        self.seconds += float(row.get(VIRTUAL_SECONDS) or 0.0)


def left_to_nobody(experiments: Iterable[Experiment]) -> list[str]:
    """Return a line for each partition that leaves rows or classes to nobody."""
    found = [(e, str(unheld(e))) for e in experiments]
    lines = (
        f"{e.partition}, {e.clients} clients, seed {e.seed}: {text}" for e, text in found if text
    )
    return [*dict.fromkeys(lines)]


def dropped_clients(result: RoundResult) -> list[str]:
    """Return a line for each client that was dropped in a round, with the reason.

    Of more than a few it is one line with how many there are of each kind of reason.
    """
    reasons = {k: one.dropped for k, one in sorted(result.traffic.items()) if one.dropped}
    if len(reasons) > MOST_DROPPED:
        kinds = Counter(reason.partition(":")[0] for reason in reasons.values())
        each = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(MOST_DROPPED))
        return [f"round {result.round}: {len(reasons):,} clients dropped: {each}"]
    return [
        f"round {result.round}: client {client} dropped: {reason}"
        for client, reason in reasons.items()
    ]


def early_end(summary: Mapping[str, Any]) -> list[str]:
    """Return a line that says which budget ended a run before its last round, if one did."""
    if (reason := summary["ended_by"]) == "rounds":
        return []
    rounds = summary["experiment"]["rounds"]
    return [f"ended after round {summary['rounds']} of {rounds}: {reason} is used up"]
