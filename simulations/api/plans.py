"""What runs are asked for: the keys of one, or of several that are compared, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.api.objects import as_spec, with_specs
from simulations.data.cache import Progress
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import forget, silent
from simulations.runs.files import make_folder
from simulations.runs.results import check_empty, check_folder
from simulations.runs.settings import read_toml, several
from simulations.runs.setup import Setup, prepare
from simulations.runs.shipped import STUDIES, find
from simulations.studies.cells import Cell
from simulations.studies.pareto import AXES, ParetoStudy
from simulations.studies.sweep import cells, read_grid


def of_one(config: str | Path | None, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a configuration file, replaced by `keys`.

    Raises
    ------
    ValueError
        The file cannot be read, or asks for several runs.
    """
    values = {**({} if config is None else read_toml(find(config))), **with_specs(keys)}
    for study in STUDIES:
        if study in values:
            raise ValueError(f"{config} asks for several runs; use {study} for it")
    return values


def of_several(
    runs: str | Path | Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]],
    keys: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Return the keys of each run by its name; `keys` hold for all of them.

    `runs` are those that a configuration file asks for, or their own keys, by name or in a list.

    Raises
    ------
    ValueError
        The file cannot be read, two runs have one name, a name is none of a folder, or a key is
        given for all runs and for one.
    """
    if isinstance(runs, str | Path):
        config, values = runs, read_toml(find(runs))
    else:
        rows = (
            [{"name": k, **row} for k, row in runs.items()]
            if isinstance(runs, Mapping)
            else [*runs]
        )
        config, values = "the comparison", {"compare": [with_specs(row) for row in rows]}
    return several([(config, values)], with_specs(keys))


@dataclass(frozen=True)
class Sweep:
    """A grid of runs.

    Attributes
    ----------
    axes : set of str
        Keys in which runs differ; a folder may hold others that differ in these.
    left_out : int
        Runs that would repeat others: codecs change nothing where no smashed data are sent.
    """

    cells: list[Cell]
    axes: set[str]
    left_out: int


def of_sweep(
    config: str | Path | None, grid: Mapping[str, Sequence[Any]], keys: Mapping[str, Any]
) -> Sweep:
    """Return the runs of a grid: that of the file's ``[sweep]`` table, replaced by `grid`.

    Raises
    ------
    ValueError
        The file cannot be read, a key has no value, or a run makes no sense.
    """
    values = {**({} if config is None else read_toml(find(config))), **with_specs(keys)}
    axes = read_grid(values.pop("sweep", {}), [])
    axes |= {key: [as_spec(key, one) for one in several] for key, several in grid.items()}
    found = cells(values, read_grid(axes, []))
    differing = {"seed"} | {key for key, entries in axes.items() if len(entries) > 1}
    return Sweep(found, differing, math.prod(map(len, axes.values())) - len(found))


def of_pareto(config: str | Path, keys: Mapping[str, Any]) -> tuple[ParetoStudy, list[Cell]]:
    """Return the study of a file's ``[pareto]`` table and its runs; `keys` hold for all of them.

    Raises
    ------
    ValueError
        There is no such table, or a key is given in which runs differ.
    """
    values = read_toml(find(config))
    if not isinstance(values.get("pareto"), dict):
        raise ValueError(f"{config} has no [pareto] table")
    for key in sorted(keys.keys() & {*AXES, "pareto", "rounds"}):
        raise ValueError(f"{key} differs between the cells of {config}; set it there")
    study = ParetoStudy.read(values.pop("pareto"))
    return study, study.cells({**values, **with_specs(keys)})


def prepare_all(
    plans: Mapping[str, Mapping[str, Any]], folder: Path, progress: Progress = silent
) -> dict[str, Setup]:
    """Check all plans, load their data and build their models; make `folder`.

    `progress` is told of work on many images.

    Raises
    ------
    ValueError
        A plan cannot work; the message names it.
    """
    forget()
    check_folder(folder)
    check_empty(folder)
    setups = {}
    for name, values in plans.items():
        try:
            check_folder(folder / name)
            out = str(folder / name)
            experiment = Experiment.from_dict({**values, "out": out})
            setups[name] = prepare(experiment, progress)
        except ValueError as error:
            raise ValueError(f"{name}: {error}" if name else str(error)) from None
    engines = {setup.experiment.engine for setup in setups.values()}
    if len(engines) > 1:
        raise ValueError(f"all runs must have one engine, got {', '.join(sorted(engines))}")
    make_folder(folder)
    return setups
