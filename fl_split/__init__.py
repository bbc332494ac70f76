"""What crosses the cut of a split Vision Transformer, and what it costs."""

__version__ = "0.1.0"
