"""Plots beside each other: which configurations stand together, and how a line is named there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from simulations.report.labels import TASK, joined
from simulations.report.runs import Configuration

MOST_LINES = 8
"""In one panel, where configurations can be spread over several."""


@dataclass(frozen=True)
class Panel:
    """Some configurations in one plot; a line is named by what the title leaves out."""

    split: tuple[str, ...]
    lines: Sequence[tuple[str, Configuration]]

    @property
    def title(self) -> str:
        """What the configurations of this panel have in common."""
        return joined(self.lines[0][1].differing, self.split)


def split_keys(configurations: Sequence[Configuration], most: int = MOST_LINES) -> list[str]:
    """Return the keys that part panels: those of the task, and one more if lines are over `most`.

    Where tasks alone differ, the last key makes the lines.
    """
    keys = list(configurations[0].told)
    split = [key for key in keys if key in TASK]
    if len(split) == len(keys):
        split = split[:-1]
    if _fullest(configurations, split) > most:
        shares = {key: _fullest(configurations, [*split, key]) for key in keys if key not in split}
        good = [key for key, share in shares.items() if 1 < share <= most]
        split += sorted(good, key=lambda key: -shares[key])[:1]
    return split


def panels(configurations: Sequence[Configuration], most: int = MOST_LINES) -> list[Panel]:
    """Make a panel for each set of values of the keys of :func:`split_keys`."""
    split = split_keys(configurations, most)
    found: dict[tuple[str, ...], list[tuple[str, Configuration]]] = {}
    for one in configurations:
        rest = [key for key in one.told if key not in split]
        where = tuple(one.differing[key] for key in split)
        found.setdefault(where, []).append((joined(one.differing, rest), one))
    return [Panel(tuple(split), lines) for lines in found.values()]


def columns_of(found: Sequence[Panel]) -> int:
    """Return how many panels stand beside each other.

    One for each value of the last key, if that leaves no gaps; else some.
    """
    split, count = found[0].split, len(found)
    if len(split) > 1:
        values = {panel.lines[0][1].differing[split[-1]] for panel in found}
        if 1 < len(values) < 5 and count % len(values) == 0:
            return len(values)
    return 1 if count == 1 else 2 if count in {2, 4} else 3


def _fullest(configurations: Sequence[Configuration], split: Sequence[str]) -> int:
    """Lines in the fullest panel."""
    return max(Counter(tuple(c.differing[key] for key in split) for c in configurations).values())
