"""Results of a run, written after each round: a run that is stopped leaves complete rows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save
from torch import Tensor, nn

from simulations.runs import task_files
from simulations.runs.columns import COLUMNS, METRICS, WATCHED, Metric
from simulations.runs.experiment import Experiment
from simulations.runs.files import (
    OutputError,
    WriteError,
    append,
    csv_bytes,
    make_folder,
    read_cells,
    write_whole,
    writing,
)
from simulations.runs.observers import payload_ratio
from simulations.runs.origins import origins
from simulations.runs.provenance import versions
from simulations.runs.saved_model import CODEC, MODEL, config_of, tensors
from strategies import RoundResult

ROUNDS, CLIENTS, EXPERIMENT = "rounds.csv", "clients.parquet", "experiment.toml"
SUMMARY = "summary.json"
COMPARISON = "comparison.csv"
STUDY = "sweep.csv"

UNWRITTEN = "write error"
"""What ended a run whose results could not be written."""

BEFORE = {CLIENTS, "cell.toml", "log.txt"}
"""Files that a sweep puts into a folder before its run begins."""


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
        The folder already holds a run, is no folder, or cannot be written to; or the table of
        the run that goes on is damaged.
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
        make_folder(folder / task_files.FOLDER)
        self.folder, self.experiment = folder, experiment
        self.rows: list[dict[str, Any]] = self._keep(rounds_done) if rounds_done else []
        self.metrics = metrics
        new = [*COLUMNS, *(metric.name for metric in metrics)]
        self.columns = list(self.rows[0]) if self.rows else new
        write_whole(folder / EXPERIMENT, experiment.to_toml().encode())
        if not rounds_done:
            self._append(self.columns)

    def add(
        self,
        result: RoundResult,
        measured: Mapping[str, Any],
        of_clients: Mapping[int, Mapping[str, float]],
    ) -> dict[str, Any]:
        """Write a finished round and what was measured of it, and of clients; return its row."""
        found = {"round": result.round, **measured}
        if new := [key for key in found if key not in self.columns]:
            self._widen(new)
        row = {key: found.get(key) for key in self.columns}
        parts = [self._write_clients(result, of_clients)]
        try:
            parts.append(task_files.write(self.folder, result.round, result.tasks))
            self._append(list(row.values()))
        except WriteError:
            for part in parts:
                part.unlink(missing_ok=True)  # a round is there whole or not at all
            raise
        self.rows.append(row)
        return row

    def _write_clients(
        self, result: RoundResult, of_clients: Mapping[int, Mapping[str, float]]
    ) -> Path:
        """Write what clients sent in a round, and what was measured of each; return the file."""
        path = self.folder / CLIENTS / f"round-{result.round:06d}.parquet"
        if result.traffic:
            clients = [
                {
                    "round": result.round,
                    "client": client,
                    **traffic.row(),
                    **of_clients.get(client, {}),
                }
                for client, traffic in sorted(result.traffic.items())
            ]
            frame = pd.DataFrame(clients).astype({"ratio": float})
            write_whole(path, frame.to_parquet(index=False))
        return path

    def _widen(self, new: Sequence[str]) -> None:
        """Add columns to rounds.csv; they are empty in earlier rows."""
        self.columns += new
        self.rows = [{key: row.get(key) for key in self.columns} for row in self.rows]
        table = [self.columns, *(row.values() for row in self.rows)]
        write_whole(self.folder / ROUNDS, csv_bytes(table))

    def _keep(self, rounds: int) -> list[dict[str, Any]]:
        """Drop what was written after `rounds` rounds; return the rows before."""
        path = self.folder / ROUNDS
        table = csv_bytes(read_cells(path, rounds))
        write_whole(path, table)
        for name in (CLIENTS, task_files.FOLDER):
            for part in (self.folder / name).glob("round-*.parquet"):
                if int(part.stem.partition("-")[2]) > rounds:
                    part.unlink()
        frame = pd.read_csv(BytesIO(table), float_precision="round_trip").astype(object)
        kept = frame.where(frame.notna(), None).to_dict("records")
        return [{str(name): value for name, value in row.items()} for row in kept]

    def totals(self) -> dict[str, Any]:
        """Return rounds done, and sums over them of all that adds up."""
        found = {m.name: self._sum(m) for m in (*METRICS, *self.metrics) if m.adds_up}
        return {"rounds": len(self.rows), **found}

    def so_far(self) -> dict[str, Any]:
        """Return what a budget is told: totals, and the values of columns that do not add up."""
        others = [m.name for m in METRICS if not m.adds_up]
        by_round = {name: [row[name] for row in self.rows] for name in others}
        return {**self.totals(), "by_round": by_round}

    def _sum(self, metric: Metric) -> Any:
        """Add a column up; empty cells count nothing, a watch's seconds are told to the ms."""
        found = sum(row.get(metric.name) or 0 for row in self.rows)
        return round(found, 3) if metric.name in WATCHED else found

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
        try:
            self._write_weights(model, codec)
        except WriteError:
            with suppress(WriteError):  # there may be room for a few lines
                self._write_summary("failed", UNWRITTEN, facts)
            raise
        return self._write_summary(status, ended_by, facts)

    def _write_weights(self, model: nn.Module, codec: Mapping[str, Tensor]) -> None:
        is_transformers = self.experiment.parts.model.is_transformers
        state = tensors(model, is_transformers)
        write_whole(self.folder / MODEL, save(state, metadata={"format": "pt"}))
        if codec:
            write_whole(self.folder / CODEC, save(dict(codec)))
        if is_transformers:
            with writing(self.folder / "config.json"):
                config_of(model).save_pretrained(self.folder)  # for from_pretrained(folder)

    def _write_summary(
        self, status: str, ended_by: str, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
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
        append(self.folder / ROUNDS, csv_bytes([cells]))


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
