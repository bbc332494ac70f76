"""Sweeps: a grid of experiments, one folder per cell, named after what differs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pandas as pd
from rich.table import Table

from fl_split.spec_errors import SpecError, unknown
from simulations.report import CLIENT
from simulations.report.labels import SELF_EVIDENT, short
from simulations.report.text_table import text_table
from simulations.runs.checkpoint import FREE
from simulations.runs.columns import PAYLOAD, WEIGHTS
from simulations.runs.experiment import Experiment
from simulations.runs.parts import SPEC_TABLES
from simulations.runs.settings import read_values
from simulations.studies.cells import Cell

OF_SMASHED = ("codec", "downlink", "channel", "down_channel")
"""Keys that change nothing where no smashed data are sent."""

LONGEST_NAME = 120


def read_grid(table: Any, pairs: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of each key: those of a ``[sweep]`` table, replaced by ``key=values``.

    Raises
    ------
    SpecError
        An argument without ``=``, a key without a value, or no table at all.
    """
    if not isinstance(table, Mapping):
        raise SpecError("sweep must be a table, [sweep], of lists")
    found: dict[str, list[Any]] = {}
    for key, value in table.items():
        if isinstance(value, str):
            value = read_values(key, value)
        found[key] = value if isinstance(value, list) else [value]
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise SpecError(f"expected key=value or key=value,value,..., got {pair!r}")
        found[key] = read_values(key, text)
    for key, values in found.items():
        if key not in Experiment.model_fields:
            raise SpecError(unknown("key", key, Experiment.model_fields))
        if not values:
            raise SpecError(f"{key}: no value")
        if len(values) > 1 and key in FREE:
            raise SpecError(f"{key} does not change a result; give one value")
    return found


def cells(base: Mapping[str, Any], grid: Mapping[str, list[Any]]) -> list[Cell]:
    """Make all experiments of a grid, every one of them checked; seeds vary fastest.

    Strategies that send no smashed data are run with one codec, downlink and channel each way
    only: no compression and the perfect one if they are among them, else the first.

    Raises
    ------
    SpecError
        An experiment that makes no sense, or two that are the same; it names the cell.
    """
    values = {**base, **{key: entries[0] for key, entries in grid.items() if len(entries) == 1}}
    axes = {key: grid[key] for key in sorted(grid, key=_place) if len(grid[key]) > 1}
    alone = {key: _plainest(axes[key]) for key in OF_SMASHED if key in axes}
    found: list[Cell] = []
    for chosen in product(*axes.values()):
        settings = dict(zip(axes, chosen, strict=True))
        settings.setdefault("seed", values.get("seed", Experiment.model_fields["seed"].default))
        name = "-".join(_label(key, value) for key, value in settings.items())
        cell = Cell.read(name, values, settings)
        is_plainest = all(settings[key] == value for key, value in alone.items())
        if is_plainest or cell.experiment.parts.strategy.sends_smashed_data:
            found.append(cell)
    return _told_apart(found)


def _plainest(specs: list[Any]) -> Any:
    return next((spec for spec in specs if str(spec).startswith(("identity", "perfect"))), specs[0])


def _told_apart(found: list[Cell]) -> list[Cell]:
    """End names that are equal or too long in a digest of the experiment."""
    specs = [json.dumps(cell.experiment.model_dump(exclude=FREE)) for cell in found]
    names = [cell.name for cell in found]
    told_apart = []
    for cell, spec in zip(found, specs, strict=True):
        if specs.count(spec) > 1:
            raise SpecError(f"{cell.name}: two cells are the same experiment")
        name = cell.name
        if names.count(name) > 1 or len(name) > LONGEST_NAME:
            digest = hashlib.blake2b(spec.encode(), digest_size=4).hexdigest()
            name = f"{name[:LONGEST_NAME]}-{digest}"
        told_apart.append(replace(cell, name=name))
    return told_apart


def _place(key: str) -> tuple[int, int]:
    """Sort key: the keys of a label first, seeds last."""
    if key == "seed":
        return 2, 0
    if key in SELF_EVIDENT:
        return 0, SELF_EVIDENT.index(key)
    return 1, [*Experiment.model_fields].index(key)


def _label(key: str, value: Any) -> str:
    """Shorten a setting to what may stand in a folder's name: ``adc(ratio=0.1)`` to adc-0.1."""
    text = short(key, value).replace("e+", "e")  # 1e+30: a plus is no part of a name
    if key in SPEC_TABLES:
        text = re.sub(r"\w+\s*=\s*(?!True|False)", "", text)  # a flag needs its name
        text = text if key in SELF_EVIDENT else f"{key}-{text}"
    else:
        text = f"{key}{text}"
    safe = re.sub(r"[^A-Za-z0-9.|_]+", "-", text).strip("-.") or "_"
    return re.sub(r"-*\|-*", "+", safe)


def sweep_table(rows: pd.DataFrame, width: int) -> Table:
    """Show mean and standard deviation over seeds of every combination that has finished."""
    axes = list(rows.columns[1 : rows.columns.get_loc("status")].drop("seed"))
    done = rows[rows["status"] == "complete"]
    has_clients = bool(done["client_accuracy"].notna().any())
    shown = []
    for chosen, group in done.groupby(axes, sort=False) if axes else [((), done)]:
        kinds = [group[[*keys]].sum(axis=1, skipna=False) / 1e6 for keys in (PAYLOAD, WEIGHTS)]
        keys = ("final_accuracy", *(["client_accuracy"] if has_clients else []))
        shares = [100 * group[key].astype(float) for key in keys]
        columns = [*shares, *kinds, group["cpu_seconds"]]
        numbers = [_mean_and_spread(column.astype(float)) for column in columns]
        label = ", ".join(map(_label, axes, chosen)) or "all"
        shown.append([label, str(len(group)), *numbers])
    caption = "Mean ± standard deviation over seeds. MB = 10^6 bytes, both directions."
    accuracies = ["final %", *(["client %"] if has_clients else [])]
    return text_table(
        [", ".join(axes), "seeds", *accuracies, "payload MB", "weights MB", "CPU s"], shown, width,
        spare=("CPU s", "seeds"), title="Accuracy against bytes",
        caption=caption + (CLIENT if has_clients else ""),
    )  # fmt: skip


def _mean_and_spread(values: pd.Series[float]) -> str:
    spread = "" if len(values) < 2 else f" ± {values.std():,.1f}"
    return f"{values.mean():,.1f}{spread}" if values.notna().any() else "-"
