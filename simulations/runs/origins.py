"""Which parts of an experiment are not ours, and where their code comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from torch import nn

from fl_split.foreign import OURS, Given, Origin, origin
from fl_split.models.own import OwnModel
from fl_split.specs import resolve, stages
from fl_split.tables import entry
from simulations.runs.experiment import Experiment
from simulations.runs.parts import SPEC_TABLES

NAMED = {*OURS, "builtins", "torch"}
"""Packages whose versions every summary names."""

Origins = dict[str, list[dict[str, str]]]
"""By key: for each foreign part its ``part``, ``version`` and ``sha256``."""


def origins(experiment: Experiment) -> Origins:
    """Tell where every foreign part of an experiment comes from; keys without one are left out."""
    found: Origins = {}
    for key, one in _foreign(experiment):
        found.setdefault(key, []).append(asdict(one))
    return found


def modules(experiment: Experiment) -> list[str]:
    """Name the modules of all foreign parts."""
    return sorted({one.part.partition(":")[0] for _, one in _foreign(experiment)})


def _foreign(experiment: Experiment) -> Iterator[tuple[str, Origin]]:
    for key, table in SPEC_TABLES.items():
        for stage in stages(getattr(experiment, key)):
            if isinstance(stage, Given):
                parts = code(stage.part)
            else:
                parts = [entry(resolve(stage, table)[0], table)]
            for part in parts:
                if part.__module__.partition(".")[0] not in NAMED and part not in table.values():
                    yield key, origin(part)


def code(part: Any) -> list[Callable[..., Any]]:
    """Return the classes and functions that an object's code is of."""
    if not isinstance(part, OwnModel):
        return [type(part)]
    if not isinstance(part.stages, nn.Module):
        return [part.stages]
    return list(dict.fromkeys(type(layer) for layer in part.stages.modules()))
