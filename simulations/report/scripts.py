"""The libraries that a page carries, so that it needs no network.

Plotly draws figures (see plots). For tables DataTables (MIT), of which itables (MIT, 1.6 MB, no
dependency) ships one file with all extensions: it takes the tables that stand in the page, which
so are there without it too. Together they make a page some 5.5 MB long.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from markupsafe import Markup
from plotly.offline import get_plotlyjs


@cache
def plotly_script() -> Markup:
    """Return Plotly's JavaScript."""
    return _within(get_plotlyjs())


@cache
def datatables_script() -> Markup:
    """Return DataTables, a module."""
    return _within((files("itables") / "html" / "dt_bundle.js").read_text(encoding="utf-8"))


@cache
def datatables_style() -> Markup:
    """Return the style of DataTables."""
    return _within((files("itables") / "html" / "dt_bundle.css").read_text(encoding="utf-8"))


def _within(text: str) -> Markup:
    """Return text that may stand in a script or style of a page."""
    return Markup(text.replace("</script", "<\\/script").replace("</style", "<\\/style"))
