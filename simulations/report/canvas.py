"""A figure that a notebook shows; no window, no state of pyplot."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


class Canvas(Figure):
    """A figure of matplotlib that shows itself as the value of a notebook's cell."""

    def _repr_png_(self) -> bytes:
        """Return the picture."""
        file = BytesIO()
        self.savefig(file, format="png", bbox_inches="tight")
        return file.getvalue()
