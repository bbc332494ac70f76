"""What runs leave, as objects: tables, models, plots; read from their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from safetensors.torch import load_file
from torch import nn

from simulations.api.objects import with_specs
from simulations.report import comparison, comparison_figure
from simulations.runs.experiment import Experiment
from simulations.runs.results import CLIENTS, COMPARISON, EXPERIMENT, MODEL, ROUNDS, STUDY, SUMMARY
from simulations.runs.settings import read_toml

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NoResultsError(ValueError):
    """A folder that holds nothing to read."""


@dataclass(frozen=True)
class Run:
    """One run in its folder; everything is read when it is asked for.

    Parameters
    ----------
    folder : Path
        Where the results are.
    objects : Mapping
        Objects that stood in the place of spec strings, by key; only :attr:`model` needs them.
    """

    folder: Path
    objects: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def rounds(self) -> pd.DataFrame:
        """One row per round: accuracy, losses, bytes, operations, seconds."""
        return pd.read_csv(self.folder / ROUNDS)

    @property
    def clients(self) -> pd.DataFrame:
        """One row per client and round: samples, bytes, why it was dropped; empty without any."""
        path = self.folder / CLIENTS
        return pd.read_parquet(path) if any(path.glob("*.parquet")) else pd.DataFrame()

    @property
    def summary(self) -> dict[str, Any]:
        """Final accuracy, sums over all rounds, the experiment, versions."""
        found: dict[str, Any] = json.loads((self.folder / SUMMARY).read_text(encoding="utf-8"))
        return found

    @property
    def accuracy(self) -> float:
        """Accuracy on the test split after the last round, 0 to 1."""
        return float(self.rounds["accuracy"].iloc[-1])

    @property
    def experiment(self) -> Experiment:
        """The settings of the run."""
        return Experiment.from_dict(
            {**read_toml(self.folder / EXPERIMENT), **with_specs(self.objects)}
        )

    @cached_property
    def model(self) -> nn.Module:
        """The whole trained model, head and tail joined, in evaluation mode.

        Raises
        ------
        ValueError
            The model was an object in memory, which must be given again.
        """
        shape = self.summary["model_input"]
        spec = self.experiment.parts.model
        if spec.is_transformers:
            from transformers import AutoModelForImageClassification

            model: nn.Module = AutoModelForImageClassification.from_pretrained(self.folder)
        else:
            model = spec.build(**shape, seed=0)
            model.load_state_dict(load_file(self.folder / MODEL))
        return model.eval()

    def plot(self) -> Figure:
        """Draw accuracy against rounds, bytes and client steps."""
        return comparison_figure({self.folder.name: self.folder})


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side."""

    folder: Path
    runs: dict[str, Run]

    @property
    def table(self) -> pd.DataFrame:
        """One row per run: accuracy against what was sent and computed."""
        return comparison({name: run.summary for name, run in self.runs.items()})

    def plot(self) -> Figure:
        """Draw accuracy against rounds, bytes and client steps, a line for each run."""
        return comparison_figure({name: run.folder for name, run in self.runs.items()})


@dataclass(frozen=True)
class Study:
    """A grid of runs in one folder.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per cell: what differs, its status, what it gave and cost. Of a Pareto study one
        row per cell and budget.
    """

    folder: Path
    table: pd.DataFrame = field(repr=False)
    runs: dict[str, Run] = field(repr=False)


def load(folder: str | Path, **objects: Any) -> Run | Comparison | Study:
    """Read the results in a folder: of a run, a comparison or a study.

    Parameters
    ----------
    folder : str or Path
        What :func:`~simulations.api.run` and the others, or the command line, have written.
    objects
        Objects that stood in the place of spec strings, by key.

    Raises
    ------
    NoResultsError
        There are none.
    """
    path = Path(folder).expanduser()
    if (path / ROUNDS).is_file():
        return Run(path, objects)
    runs = {
        found.parent.name: Run(found.parent, objects) for found in sorted(path.glob(f"*/{ROUNDS}"))
    }
    for table in ("pareto.csv", STUDY):
        if (path / table).is_file():
            return Study(path, pd.read_csv(path / table), runs)
    if runs:
        order = path / COMPARISON
        names = pd.read_csv(order)["run"].astype(str) if order.is_file() else [*runs]
        return Comparison(path, {name: runs[name] for name in names if name in runs})
    raise NoResultsError(f"{str(folder)!r} holds no results; give the folder of a run or a study")
