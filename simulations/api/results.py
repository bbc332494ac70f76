"""What runs leave, as objects: tables, models, plots; read from their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import nn

from fl_split.exchange.whole import Joined
from simulations.api.looking import Data
from simulations.api.objects import with_specs
from simulations.report import comparison, comparison_figure
from simulations.report.finished import run_names
from simulations.runs.checkpoint import read_experiment
from simulations.runs.experiment import Experiment
from simulations.runs.files import (
    DamagedError,
    check_columns,
    read_parts,
    read_rounds,
    read_summary,
)
from simulations.runs.paths import expanded
from simulations.runs.results import CLIENTS, COMPARISON, ROUNDS, STUDY, SUMMARY
from simulations.runs.saved_model import load_halves
from simulations.studies.pareto import FRONT, pareto_figure

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
        return read_rounds(self.folder / ROUNDS)

    @property
    def clients(self) -> pd.DataFrame:
        """One row per client and round: samples, bytes, why it was dropped; empty without any."""
        path = self.folder / CLIENTS
        return read_parts(path) if any(path.glob("*.parquet")) else pd.DataFrame()

    @property
    def summary(self) -> dict[str, Any]:
        """Final accuracy, sums over all rounds, the experiment, versions."""
        found = read_summary(self.folder / SUMMARY)
        if not found:
            raise NoResultsError(
                f"{str(self.folder)!r} has no {SUMMARY}: the run goes on, or was killed; "
                "fl_split.resume goes on with it"
            )
        return found

    @property
    def data(self) -> Data:
        """What was decided about the data, and classes with counts; there from the start."""
        return Data.of_run(self.folder)

    @property
    def accuracy(self) -> float:
        """Accuracy on the test split after the last round, 0 to 1."""
        return float(self.rounds["accuracy"].iloc[-1])

    @property
    def experiment(self) -> Experiment:
        """The settings of the run."""
        return read_experiment(self.folder, with_specs(self.objects))

    @cached_property
    def model(self) -> nn.Module:
        """The whole trained model, head and tail joined, in evaluation mode.

        With a codec that is trained, as `bottlenet`, its encoder and decoder are in between; with
        a selection of tokens the model makes it.

        Raises
        ------
        ValueError
            The model was an object in memory, which must be given again.
        """
        found = load_halves(self.folder, self.experiment, self.summary["model_input"])
        model, head, tail = found
        if head.selector is not None or not isinstance(head.encoder, nn.Identity):
            return Joined(head, tail).eval()
        if self.experiment.parts.model.is_transformers:  # as all the world reads it
            from transformers import AutoModelForImageClassification

            model = AutoModelForImageClassification.from_pretrained(self.folder)
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

    def plot(self) -> Figure:
        """Draw a Pareto study's accuracies under each budget; of a sweep, a line for each run."""
        if "budget" in self.table:
            return pareto_figure(self.table)
        return comparison_figure({name: run.folder for name, run in self.runs.items()})


def _table(path: Path, needed: Sequence[str]) -> pd.DataFrame:
    """Read a table of several runs; DamagedError if it is none any more."""
    try:
        frame = pd.read_csv(path)
    except ValueError as error:  # pandas' own errors are ValueErrors
        raise DamagedError(f"{path} is no table: {error}") from None
    check_columns(path, [*frame.columns], needed)
    return frame


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
    DamagedError
        A table of several runs is not as it was written.
    """
    path = expanded(folder)
    if (path / ROUNDS).is_file():
        return Run(path, objects)
    runs = {
        found.parent.name: Run(found.parent, objects) for found in sorted(path.glob(f"*/{ROUNDS}"))
    }
    for table, needed in ((FRONT, ("codec", "budget")), (STUDY, ("cell", "status"))):
        if (path / table).is_file():
            return Study(path, _table(path / table, needed), runs)
    if runs:
        names = run_names(path / COMPARISON) or [*runs]
        return Comparison(path, {name: runs[name] for name in names if name in runs})
    raise NoResultsError(f"{str(folder)!r} holds no results; give the folder of a run or a study")
