"""Configuration of Sphinx: pages in Markdown, reference pages made from the code they describe."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from fl_split import __version__  # noqa: E402  (the path comes first)

project = "fl-split"
author = copyright = "The fl-split contributors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference_pages"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
smartquotes = False
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"

html_theme = "furo"
html_title = f"fl-split {release}"
