"""What runs are asked for: the keys of one, or of several that are compared, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.api.objects import with_specs
from simulations.runs.experiment import Experiment
from simulations.runs.results import check_empty, check_folder, make_folder
from simulations.runs.settings import read_toml, rows_of
from simulations.runs.setup import Setup, prepare
from simulations.runs.shipped import STUDIES, find


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
        config, values = str(runs), read_toml(find(runs))
    else:
        rows = (
            [{"name": k, **row} for k, row in runs.items()]
            if isinstance(runs, Mapping)
            else [*runs]
        )
        config, values = "the comparison", {"compare": [with_specs(row) for row in rows]}
    found: dict[str, dict[str, Any]] = {}
    for name, row in rows_of(config, values, with_specs(keys)):
        if name in found:
            raise ValueError(f"two runs are called {name!r}; give them different names")
        found[name] = row
    if not found:
        raise ValueError("give at least one run")
    return found


def prepare_all(plans: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, Setup]:
    """Check all plans, load their data and build their models; make `folder`.

    Raises
    ------
    ValueError
        A plan cannot work; the message names it.
    """
    check_folder(folder)
    check_empty(folder)
    setups = {}
    for name, values in plans.items():
        try:
            check_folder(folder / name)
            out = str(folder / name)
            setups[name] = prepare(Experiment.from_dict({**values, "out": out}))
        except ValueError as error:
            raise ValueError(f"{name}: {error}" if name else str(error)) from None
    engines = {setup.experiment.engine for setup in setups.values()}
    if len(engines) > 1:
        raise ValueError(f"all runs must have one engine, got {', '.join(sorted(engines))}")
    make_folder(folder)
    return setups
