"""What runs are asked for: the keys of one, or of several that are compared, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.api.objects import with_specs
from simulations.runs.experiment import Experiment
from simulations.runs.results import check_empty, check_folder, make_folder
from simulations.runs.settings import read_toml
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
    rows: Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]], keys: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the keys of each run by its name; `keys` hold for all of them.

    Raises
    ------
    ValueError
        Two runs have one name, a name is none of a folder, or a key is given for all runs and
        for one.
    """
    common, found = with_specs(keys), dict[str, dict[str, Any]]()
    for name, row in _named(rows):
        if name in {"", ".", ".."} or Path(name).name != name:
            raise ValueError(f"name must be usable as a folder's, got {name!r}")
        if name in found:
            raise ValueError(f"two runs are called {name!r}; give them different names")
        for key in common:
            if key in row:
                raise ValueError(f"{key} differs between the runs; set it there")
        found[name] = {**common, **with_specs(row)}
    if not found:
        raise ValueError("give at least one run")
    return found


def of_file(config: str | Path, keys: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the keys of each run that a configuration file asks for, by name.

    Raises
    ------
    ValueError
        The file cannot be read, or its ``[[compare]]`` tables are none.
    """
    values = read_toml(find(config))
    rows = values.pop("compare", None)
    if rows is None:
        return {Path(config).stem: {**values, **with_specs(keys)}}
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{config}: compare must be a list of tables, [[compare]]")
    try:
        return {k: {**values, **row} for k, row in of_several(rows, keys).items()}
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from None


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


def _named(
    rows: Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(rows, Mapping):
        yield from ((str(name), dict(row)) for name, row in rows.items())
        return
    for number, row in enumerate(rows, start=1):
        values = dict(row)
        yield str(values.pop("name", f"run-{number}")), values
