"""Finds misspelt keys and specs before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_split.spec_errors import SpecError, unknown
from fl_split.specs import resolve, stages
from simulations.runs.outline import UnreadableError, keys, tables


def check_names(values: Mapping[str, Any]) -> None:
    """Raise SpecError if `values` has a misspelt key, or a spec a misspelt name or argument.

    What is wrong otherwise :class:`Experiment` finds; its sentences are the same. Nothing is
    said of parts that come from elsewhere.
    """
    try:
        known, specs = keys(), tables()
    except UnreadableError:
        return
    if "plugins" in values:
        return
    for key in values:
        if key not in known:
            raise SpecError(unknown("key", key, known))
    problems = []
    for key in known.keys() & values.keys() & specs.keys():
        spec = values[key]
        if isinstance(spec, str) and ":" not in spec:
            try:
                for stage in stages(spec):
                    resolve(stage, specs[key])
            except SpecError as error:
                problems.append(f"{key}: {error}")
    if problems:
        raise SpecError("; ".join(sorted(problems)))
