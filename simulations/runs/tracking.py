"""Sends rows of results to TensorBoard or MLflow through their own libraries; off by default."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from fl_split.tables import Table


class Log(Protocol):
    """Takes the rows of one run."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Take the row of a finished round."""
        ...

    def close(self, status: str) -> None:
        """End the log; `status` is complete, interrupted or failed."""
        ...


@runtime_checkable
class Tracking(Protocol):
    """Opens a log for each run."""

    def open(self, settings: dict[str, Any], folder: Path) -> Log:
        """Begin a log of a run."""
        ...


class NoLog:
    """A log that drops all rows."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self, status: str) -> None:
        """Do nothing."""


@dataclass(frozen=True, config=STRICT)
class NoTracking:
    """Results are in the run's folder and nowhere else."""

    def open(self, settings: Mapping[str, Any], folder: Path) -> Log:
        """Return a log that goes nowhere."""
        return NoLog()


@dataclass(frozen=True, config=STRICT)
class TensorBoard:
    """Event files in the run's folder: ``tensorboard --logdir runs``."""

    def __post_init__(self) -> None:
        _need("tensorboard", "tensorboard")

    def open(self, settings: Mapping[str, Any], folder: Path) -> Log:
        """Start to write."""
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder))
        rows = "".join(f"| {key} | {value} |\n" for key, value in settings.items())
        writer.add_text("experiment", f"| key | value |\n|---|---|\n{rows}")
        return _TensorBoardEvents(writer)


@dataclass(frozen=True, config=STRICT)
class MLflow:
    """A run of MLflow with the settings as parameters.

    Parameters
    ----------
    uri : str
        Address of the tracking server or store, or a folder; empty for MLflow's own default.
    experiment : str
        Its name there.
    """

    paths: ClassVar[tuple[str, ...]] = ("uri",)

    uri: str = ""
    experiment: str = "fl-split"

    def __post_init__(self) -> None:
        _need("mlflow", "mlflow-skinny")

    def open(self, settings: Mapping[str, Any], folder: Path) -> Log:
        """Start a run."""
        from mlflow import MlflowClient

        client = MlflowClient(self.uri or None)
        found = client.get_experiment_by_name(self.experiment)
        number = found.experiment_id if found else client.create_experiment(self.experiment)
        run = client.create_run(number, run_name=folder.name).info.run_id
        for key, value in settings.items():
            client.log_param(run, key, value)
        return _MLflowRun(client, run)


TRACKING: Table[type[Tracking]] = Table(
    Tracking,
    "fl_split.tracking",
    {"mlflow": MLflow, "none": NoTracking, "tensorboard": TensorBoard},
)


class _TensorBoardEvents:
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def add(self, row: Mapping[str, Any]) -> None:
        for key, value in _numbers(row).items():
            self.writer.add_scalar(key, value, row["round"])
        self.writer.flush()

    def close(self, status: str) -> None:
        self.writer.close()


class _MLflowRun:
    def __init__(self, client: Any, run: str) -> None:
        self.client, self.run = client, run

    def add(self, row: Mapping[str, Any]) -> None:
        for key, value in _numbers(row).items():
            self.client.log_metric(self.run, key, value, step=row["round"])

    def close(self, status: str) -> None:
        ends = {"complete": "FINISHED", "interrupted": "KILLED"}
        self.client.set_terminated(self.run, ends.get(status, "FAILED"))


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """All of a row that can be drawn."""
    return {
        key: float(value)
        for key, value in row.items()
        if key != "round" and isinstance(value, int | float) and math.isfinite(value)
    }


def _need(module: str, package: str) -> None:
    if find_spec(module) is None:
        raise ValueError(f"needs {package}: pip install 'fl-split[tracking]'")
