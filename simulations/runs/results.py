"""Results of a run, written after each round: a run that is stopped leaves complete rows."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save
from torch import Tensor, nn

from simulations.runs.columns import COLUMNS, METRICS, Metric
from simulations.runs.experiment import Experiment
from simulations.runs.observers import payload_ratio
from simulations.runs.origins import origins
from simulations.runs.provenance import versions
from simulations.runs.saved_model import config_of, tensors
from strategies import RoundResult

ROUNDS, CLIENTS, EXPERIMENT = "rounds.csv", "clients.parquet", "experiment.toml"
MODEL, CODEC, SUMMARY = "model.safetensors", "codec.safetensors", "summary.json"
COMPARISON = "comparison.csv"
STUDY = "sweep.csv"

BEFORE = {CLIENTS, "cell.toml", "log.txt"}
"""Files that a sweep puts into a folder before its run begins."""


class OutputError(ValueError):
    """An output folder that cannot be used."""


class Recorder:
    """Writes one run into a folder, and keeps its rows.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    rounds_done : int
        Go on after so many rounds of the run in `folder`; later ones are forgotten.
    metrics : sequence of Metric
        What observers declare beside :data:`~simulations.runs.columns.METRICS`.

    Raises
    ------
    OutputError
        The folder already holds a run, or is no folder.
    """

    def __init__(
        self,
        folder: Path,
        experiment: Experiment,
        rounds_done: int = 0,
        metrics: Sequence[Metric] = (),
    ) -> None:
        if not rounds_done:
            check_folder(folder)
        make_folder(folder / CLIENTS)
        self.folder, self.experiment = folder, experiment
        self.rows: list[dict[str, Any]] = self._keep(rounds_done) if rounds_done else []
        self.metrics = metrics
        new = [*COLUMNS, *(metric.name for metric in metrics)]
        self.columns = list(self.rows[0]) if self.rows else new
        write_whole(folder / EXPERIMENT, experiment.to_toml().encode())
        if not rounds_done:
            self._append(self.columns)

    def add(self, result: RoundResult, measured: Mapping[str, Any]) -> dict[str, Any]:
        """Write a finished round and what was measured of it; return its row."""
        found = {"round": result.round, **measured}
        if new := [key for key in found if key not in self.columns]:
            self._widen(new)
        row = {key: found.get(key) for key in self.columns}
        self.rows.append(row)
        self._append(list(row.values()))
        if result.traffic:
            clients = [
                {"round": result.round, "client": client, **traffic.row()}
                for client, traffic in sorted(result.traffic.items())
            ]
            frame = pd.DataFrame(clients).astype({"ratio": float})
            path = self.folder / CLIENTS / f"round-{result.round:06d}.parquet"
            write_whole(path, frame.to_parquet(index=False))
        return row

    def _widen(self, new: Sequence[str]) -> None:
        """Add columns to rounds.csv; they are empty in earlier rows."""
        self.columns += new
        self.rows = [{key: row.get(key) for key in self.columns} for row in self.rows]
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *(row.values() for row in self.rows)])
        write_whole(self.folder / ROUNDS, text.getvalue().encode())

    def _keep(self, rounds: int) -> list[dict[str, Any]]:
        """Drop what was written after `rounds` rounds; return the rows before."""
        path = self.folder / ROUNDS
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if len(lines) <= rounds:
            raise OutputError(f"{path} has {len(lines) - 1} rounds, the checkpoint {rounds}")
        write_whole(path, "".join(f"{line}\n" for line in lines[: rounds + 1]).encode())
        for part in (self.folder / CLIENTS).glob("round-*.parquet"):
            if int(part.stem.partition("-")[2]) > rounds:
                part.unlink()
        frame = pd.read_csv(path, float_precision="round_trip").astype(object)
        kept = frame.where(frame.notna(), None).to_dict("records")
        return [{str(name): value for name, value in row.items()} for row in kept]

    def totals(self) -> dict[str, Any]:
        """Return rounds done, and sums over them of all that adds up."""
        found = {m.name: self._sum(m) for m in (*METRICS, *self.metrics) if m.adds_up}
        return {"rounds": len(self.rows), **found}

    def _sum(self, metric: Metric) -> Any:
        """Add a column up; empty cells count nothing, seconds are rounded to milliseconds."""
        found = sum(row.get(metric.name) or 0 for row in self.rows)
        return round(found, 3) if metric.unit == "s" else found

    def finish(
        self,
        model: nn.Module,
        status: str,
        ended_by: str,
        codec: Mapping[str, Tensor],
        facts: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Write weights and summary; `status` is complete, interrupted or failed.

        `ended_by` is "rounds" if all were done, or the budget that was used up, or what
        stopped the run.
        `client_accuracy` is that of the last row: of clients on their own held-out samples.
        """
        is_transformers = self.experiment.parts.model.is_transformers
        state = tensors(model, is_transformers)
        write_whole(self.folder / MODEL, save(state, metadata={"format": "pt"}))
        if codec:
            write_whole(self.folder / CODEC, save(dict(codec)))
        if is_transformers:
            config_of(model).save_pretrained(self.folder)  # so that from_pretrained(folder) works
        summary = {**self._summary(status, ended_by), **facts}
        write_whole(self.folder / SUMMARY, json.dumps(summary, indent=2).encode() + b"\n")
        return summary

    def _summary(self, status: str, ended_by: str) -> dict[str, Any]:
        accuracies = [row["accuracy"] for row in self.rows]
        sums = self.totals()
        return {
            "status": status,
            "ended_by": ended_by,
            "final_accuracy": accuracies[-1] if accuracies else None,
            "best_accuracy": max(accuracies, default=None),
            "client_accuracy": self.rows[-1]["client_accuracy"] if self.rows else None,
            **sums,
            "ratio": payload_ratio(sums),
            "metrics": [asdict(metric) for metric in self.metrics],
            "seed": self.experiment.seed,
            "experiment": self.experiment.model_dump(exclude={"out"}),
            "versions": versions(),
            "foreign": origins(self.experiment),
        }

    def _append(self, cells: list[Any]) -> None:
        with (self.folder / ROUNDS).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(cells)


def check_folder(folder: Path) -> None:
    """Raise OutputError unless a run may be written to `folder`."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise OutputError(f"out: {str(nearest)!r} is a file; give a folder")
    if not os.access(nearest, os.W_OK):
        raise OutputError(f"out: {str(nearest)!r} cannot be written to; give another folder")
    if any((folder / name).exists() for name in (EXPERIMENT, ROUNDS, SUMMARY, COMPARISON)):
        raise OutputError(
            f"out: {str(folder)!r} already holds a run; give another folder or remove it"
        )


def check_empty(folder: Path) -> None:
    """Raise OutputError if `folder` holds files that are not ours; hidden ones do not count."""
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in found if not name.startswith(".") and name not in BEFORE]
    if foreign:
        others = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise OutputError(
            f"out: {str(folder)!r} holds no run but other files ({foreign[0]}{others}); "
            "give a new or an empty folder"
        )


def make_folder(folder: Path) -> None:
    """Make `folder`; raise OutputError if that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"out: cannot make {str(folder)!r}: {error.strerror}") from None


def write_whole(path: Path, data: bytes) -> None:
    """Write a whole file or nothing."""
    part = path.with_name(f".{path.name}.part")  # hidden: readers of a folder skip it
    part.write_bytes(data)
    part.replace(path)
