"""A figure that a notebook shows, and names in figures as they are; no state of pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure
from matplotlib.legend import Legend

PLAIN = {"text.parse_math": False}
"""Setting of matplotlib under which a dollar in a name is a dollar, and begins no formula."""


class Canvas(Figure):
    """A figure of matplotlib that shows itself as the value of a notebook's cell."""

    def _repr_png_(self) -> bytes:
        """Return the picture."""
        file = BytesIO()
        self.savefig(file, format="png", bbox_inches="tight")
        return file.getvalue()


def named_legend(of: Any, handles: Sequence[Any], names: Sequence[str], **options: Any) -> Legend:
    """Add a legend to a figure or an axis; call it under :data:`PLAIN`.

    A legend of matplotlib leaves out names that begin with an underscore: they are put in later.
    """
    legend: Legend = of.legend(handles, [f"{place}" for place in range(len(names))], **options)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
    return legend
