"""Cells of a study: runs in folders of their own, which are found again and not repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_split.specs import SpecError
from simulations.checkpoint import FREE
from simulations.experiment import Experiment, read_toml
from simulations.results import EXPERIMENT, SUMMARY


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


def is_complete(folder: Path) -> bool:
    """Tell whether the run in `folder` reached its end."""
    summary = folder / SUMMARY
    return summary.exists() and json.loads(summary.read_text())["status"] == "complete"
