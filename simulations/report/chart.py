"""Accuracy against something: what a figure of lines in panels shows, however it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from simulations.report.marks import Mark, shared
from simulations.report.panels import Panel

ACCURACY = "test accuracy, %"


@dataclass(frozen=True, eq=False)
class Line:
    """Points in one panel.

    Attributes
    ----------
    entry : str
        What the legend calls it; empty for what has no entry.
    frame : DataFrame
        Columns `x`, `mean`; of curves and bars also `least`, `greatest`, `seeds`.
    name : str
        Whose points these are.
    kind : str
        A curve with a band; points with bars; what joins points of others; a Pareto front.
    """

    panel: int
    entry: str
    mark: Mark
    frame: pd.DataFrame
    name: str = ""
    kind: Literal["curve", "bars", "join", "front"] = "curve"


@dataclass(frozen=True, eq=False)
class Chart:
    """All that a figure of lines shows; `ticks` names places on the axis, where it has names."""

    name: str
    title: str
    caption: str
    alt: str
    x: str
    panels: Sequence[Panel]
    lines: Sequence[Line]
    data: pd.DataFrame
    is_log: bool = False
    ticks: Mapping[int, str] = field(default_factory=dict)

    @property
    def entries(self) -> dict[str, Mark]:
        """What the legend names, and what all lines of a name have in common."""
        marks: dict[str, list[Mark]] = {}
        for line in self.lines:
            if line.entry and line.kind in ("curve", "bars"):
                marks.setdefault(line.entry, []).append(line.mark)
        return {entry: shared(found) for entry, found in marks.items()}


def hidden(frames: Sequence[pd.DataFrame]) -> list[int]:
    """Count for every curve the later ones that lie on it: it is to be drawn as much wider."""
    return [
        sum(_same(frame, other) for other in frames[number + 1 :])
        for number, frame in enumerate(frames)
    ]


def _same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Tell whether two curves cannot be told apart by eye."""
    if len(one) != len(other):
        return False
    return all(np.allclose(one[key], other[key], rtol=1e-3) for key in ("x", "mean"))
