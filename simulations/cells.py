"""Cells of a study: runs in folders of their own, which are found again and not repeated."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fl_split.specs import SpecError
from simulations.checkpoint import FREE
from simulations.experiment import Experiment, read_toml
from simulations.results import EXPERIMENT, SUMMARY

LOCK = ".sweep.lock"
"""A file that a sweep holds while it runs, and leaves."""


def holds_run(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Tell whether `folder` holds a run of this experiment, finished or not.

    Raises
    ------
    SpecError
        It holds a run of another experiment.
    """
    if not (folder / EXPERIMENT).exists():
        return False
    expected = Experiment.from_dict(settings).model_dump(exclude=FREE)
    found = Experiment.from_dict(read_toml(folder / EXPERIMENT)).model_dump(exclude=FREE)
    if found != expected:
        raise SpecError(f"{str(folder)!r} holds another experiment; give another --out")
    return True


def check_others(folder: Path, settings: Mapping[str, Any], axes: Collection[str]) -> None:
    """Let a folder hold other runs only if these differ in `axes` alone, as more seeds do.

    Raises
    ------
    SpecError
        One is of another study.
    """
    expected = Experiment.from_dict(settings).model_dump(exclude={*FREE, *axes})
    for path in sorted(folder.glob(f"*/{EXPERIMENT}")):
        found = Experiment.from_dict(read_toml(path)).model_dump(exclude={*FREE, *axes})
        for key, value in expected.items():
            if found[key] != value:
                raise SpecError(
                    f"{str(path.parent)!r} is of another study, with {key}={found[key]!r}; "
                    "give another --out"
                )


def holds_cells(folder: Path) -> bool:
    """Tell whether a sweep has begun in `folder`, or other runs lie in it."""
    return (folder / LOCK).exists() or any(folder.glob(f"*/{EXPERIMENT}"))


def is_complete(folder: Path) -> bool:
    """Tell whether the run in `folder` reached its end."""
    summary = folder / SUMMARY
    return summary.exists() and json.loads(summary.read_text())["status"] == "complete"
