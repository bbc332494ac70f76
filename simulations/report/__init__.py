"""Finished runs, for people: the table and plot of `compare`, and pages from folders of runs."""

from simulations.report.comparison import (
    CLIENT,
    comparison,
    comparison_figure,
    comparison_table,
    write_comparison,
)

__all__ = [
    "CLIENT",
    "comparison",
    "comparison_figure",
    "comparison_table",
    "write_comparison",
]
