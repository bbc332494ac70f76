"""Accuracy against what was spent: panels side by side, a line for each configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fl_split.specs import shortened, stages
from simulations.report.marks import COLOURS, INK
from simulations.system.system import SYSTEM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COLUMNS = 4
"""Panels beside each other."""

WIDEST = 50
"""Characters of the title of a panel."""

DASHES = ("-", ":", "--", "-.")


@dataclass(frozen=True)
class AccuracyPanel:
    """One panel: under a `system`, "" where none matters, against what the `axis` says.

    Attributes
    ----------
    lines : dict
        Of each configuration what was spent, and the accuracy in 0..1, after each round.
    limit : float, optional
        Where a vertical line is drawn.
    """

    system: str
    axis: str
    lines: dict[str, tuple[NDArray[Any], NDArray[Any]]]
    limit: float | None = None


def accuracy_panels(panels: Sequence[AccuracyPanel]) -> Figure:
    """Draw all panels; a configuration looks the same in each."""
    from matplotlib import rc_context

    from simulations.report.canvas import PLAIN, Canvas, named_legend
    from simulations.report.lines import logarithmic

    labels = list(dict.fromkeys(label for panel in panels for label in panel.lines))
    columns = min(MOST_COLUMNS, len(panels))
    rows, entries = -(-len(panels) // columns), min(3, len(labels))
    size = (4.5 * max(columns, 2), 3.2 * rows + 0.6 + 0.2 * -(-len(labels) // entries))
    figure = Canvas(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    firsts: dict[str, Any] = {}
    for panel, axes in zip(panels, grid.flat, strict=False):
        for label, (spent, accuracy) in panel.lines.items():
            (line,) = axes.plot(spent, 100 * accuracy, **_style(labels.index(label)))
            firsts.setdefault(label, line)
        if panel.limit is not None:
            axes.axvline(panel.limit, color="0.6", lw=0.8, zorder=0)
    for unused in grid.flat[len(panels) :]:
        unused.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy, %")
    with rc_context(PLAIN):
        for panel, axes in zip(panels, grid.flat, strict=False):
            axes.set_title("\n".join(wrap(short(panel.system), WIDEST)), fontsize="small")
            axes.set_xlabel(panel.axis)
    logarithmic([*grid.flat][: len(panels)])
    options = {"loc": "outside lower center", "ncols": entries, "fontsize": "small"}
    with rc_context(PLAIN):
        named_legend(figure, [firsts[label] for label in labels], labels, **options)
    return figure


def _style(place: int) -> dict[str, Any]:
    colour, dash = COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
    return {"color": "black" if colour == INK else colour, "linestyle": dash, "lw": 1.2}


def short(system: str) -> str:
    """Shorten a spec of a system: defaults are left out."""
    return " | ".join(shortened(stage, SYSTEM) for stage in stages(system)) if system else ""
