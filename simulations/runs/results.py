"""Results of a run, written as it goes: whatever stops it, the rows so far are complete."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from fl_split.codecs import Codec
from simulations.runs import fairness as details
from simulations.runs.experiment import Experiment
from simulations.runs.fairness import Details
from simulations.runs.provenance import versions
from strategies import RoundReport
from strategies.server.mailbox import ratio

PAYLOAD = "payload_bytes_up", "payload_bytes_down"
WEIGHTS = "head_bytes_up", "head_bytes_down"
BYTES = [*PAYLOAD, *WEIGHTS, "wire_bytes_up", "wire_bytes_down"]
"""Payload: smashed data, labels and cut gradients, as the codec serialises them. Head:
synchronised weights (of the whole model for FedAvg). Wire: the whole Flower messages."""

COLUMNS = [
    "round",
    "accuracy",
    "loss",
    "train_loss",
    "clients",
    "dropped",
    "samples",
    "client_steps",
    *BYTES,
    "smashed_bytes",
    "ratio",
    "nominal_samples",
    "client_flops",
    "server_flops",
    "wall_seconds",
    "cpu_seconds",
    *details.COLUMNS,
]
"""Columns of rounds.csv. `loss`: of the test images, after the round. `train_loss`, of any
strategy: the mean over clients that ended the round, weighted by all the samples each holds
(whatever the aggregation), of a client's mean loss over its steps, each before its update;
`centralised`: the mean over its steps.
`smashed_bytes`: what the same smashed data, and in a U-shape the middle's output, are in fp32,
uncompressed, one way. `ratio`: payload bytes of both directions over twice that.
`nominal_samples`: uncompressed samples in the ADC paper's account, where it has the codec.
Flops: of training, closed form (see fl_split/flops.py); the clients' all together. The last
columns are those of details.py."""

SUMS = (
    "dropped",
    "samples",
    "client_steps",
    "smashed_bytes",
    "nominal_samples",
    "client_flops",
    "server_flops",
    *BYTES,
)
"""Columns of which the summary holds the sum."""

ROUNDS, CLIENTS, EXPERIMENT = "rounds.csv", "clients.parquet", "experiment.toml"
MODEL, CODEC, SUMMARY = "model.safetensors", "codec.safetensors", "summary.json"
COMPARISON = "comparison.csv"
STUDY = "sweep.csv"

BEFORE = {CLIENTS, "cell.toml", "log.txt"}
"""What may lie in a folder before its run has written anything: a sweep puts it there."""


class OutputError(ValueError):
    """An output folder that cannot be used."""


class Recorder:
    """Write one run into a folder, and keep its rows for whoever shows them.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    clock : Callable, optional
        CPU seconds of the whole simulation so far. Without it (Flower's own runtime) CPU
        time is that of this process and what the clients report.
    rounds_done : int
        Go on after so many rounds of the run in `folder`; later ones are forgotten.

    Raises
    ------
    OutputError
        The folder already holds a run, or is no folder.
    """

    def __init__(
        self,
        folder: Path,
        experiment: Experiment,
        class_names: Sequence[str],
        clock: Callable[[], float] | None,
        rounds_done: int = 0,
    ) -> None:
        if not rounds_done:
            check_folder(folder)
        make_folder(folder / CLIENTS)
        self.folder, self.experiment = folder, experiment
        self.codec = experiment.build("codec")
        self.clock, self.hears_clients = clock or time.process_time, clock is None
        self.rows: list[dict[str, Any]] = self._keep(rounds_done) if rounds_done else []
        self.details = Details(folder, class_names, rounds_done)
        self._cpu = self.clock()
        self._wall = time.monotonic()
        write_whole(folder / EXPERIMENT, experiment.to_toml().encode())
        if not rounds_done:
            self._append(COLUMNS)

    def add(self, report: RoundReport) -> dict[str, Any]:
        """Write a finished round; return its row."""
        row = self._row(report)
        self.rows.append(row)
        self._append([row[column] for column in COLUMNS])
        if report.traffic:
            clients = [
                {"round": report.round, "client": client, **traffic.row()}
                for client, traffic in sorted(report.traffic.items())
            ]
            frame = pd.DataFrame(clients).astype({"ratio": float})
            path = self.folder / CLIENTS / f"round-{report.round:06d}.parquet"
            write_whole(path, frame.to_parquet(index=False))
        return row

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
        frame = pd.read_csv(path).astype(object)
        kept = frame.where(frame.notna(), None).to_dict("records")
        return [{str(name): value for name, value in row.items()} for row in kept]

    def totals(self) -> dict[str, Any]:
        """Rounds done and sums over them."""
        sums = {key: sum(row[key] for row in self.rows) for key in SUMS}
        return {"rounds": len(self.rows), **sums}

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
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        write_whole(self.folder / MODEL, save(state, metadata={"format": "pt"}))
        if codec:
            write_whole(self.folder / CODEC, save(dict(codec)))
        if isinstance(model, PreTrainedModel) and self.experiment.build("model").is_transformers:
            model.config.save_pretrained(self.folder)  # so that from_pretrained(folder) works
        summary = {**self._summary(status, ended_by), **facts}
        write_whole(self.folder / SUMMARY, json.dumps(summary, indent=2).encode() + b"\n")
        return summary

    def _row(self, report: RoundReport) -> dict[str, Any]:
        traffic = list(report.traffic.values())
        total = {
            key: sum(getattr(t, key) for t in traffic)
            for key in ("samples", "steps", "smashed_bytes", *BYTES)
        }
        cpu, wall = self.clock(), time.monotonic()
        reported = sum(t.client_cpu_seconds for t in traffic) if self.hears_clients else 0.0
        row = {
            **{key: value for key, value in total.items() if key != "steps"},
            "round": report.round,
            "accuracy": report.metrics["accuracy"],
            "loss": report.metrics["loss"],
            "train_loss": report.train_loss,
            "clients": sum(client >= 0 for client in report.traffic),
            "dropped": sum(bool(t.dropped) for t in traffic),
            "client_steps": total["steps"],
            "ratio": _ratio(total),
            "nominal_samples": _nominal_samples(self.codec, total),
            "client_flops": report.client_flops,
            "server_flops": report.server_flops,
            "wall_seconds": round(wall - self._wall, 3),
            "cpu_seconds": round(cpu - self._cpu + reported, 3),
            **self.details.add(report),
        }
        self._cpu, self._wall = cpu, wall
        return row

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
            "ratio": _ratio(sums),
            "wall_seconds": round(sum(row["wall_seconds"] for row in self.rows), 3),
            "cpu_seconds": round(sum(row["cpu_seconds"] for row in self.rows), 3),
            "seed": self.experiment.seed,
            "experiment": self.experiment.model_dump(exclude={"out"}),
            "versions": versions(),
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


def _ratio(total: dict[str, Any]) -> float | None:
    sent = total["payload_bytes_up"] + total["payload_bytes_down"]
    return ratio(sent, total["smashed_bytes"])


def _nominal_samples(codec: Codec, total: dict[str, Any]) -> float:
    """Samples times the codec's nominal ratio, or where it has none times the real one."""
    samples, smashed = total["samples"], total["smashed_bytes"]
    if not smashed:
        return 0.0
    nominal = codec.nominal_ratio(samples / total["steps"], smashed // (4 * samples))
    return float(samples * ((_ratio(total) or 0.0) if nominal is None else nominal))


def write_whole(path: Path, data: bytes) -> None:
    """Write a whole file or nothing."""
    part = path.with_name(f".{path.name}.part")  # hidden: readers of a folder skip it
    part.write_bytes(data)
    part.replace(path)
