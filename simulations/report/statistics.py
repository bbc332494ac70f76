"""Statistics of a few seeds: intervals, paired tests, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
"""Confidence of every interval."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its interval by Student's t.

    Values that are missing (nan) are left out. With one value there is no interval and the
    half-width is nan, with none the mean is too.
    """
    found = np.asarray([value for value in values if not math.isnan(value)], dtype=float)
    if len(found) < 2:
        return (float(found[0]) if len(found) else math.nan), math.nan
    spread = found.std(ddof=1) / math.sqrt(len(found))
    return float(found.mean()), float(stats.t.ppf((1 + LEVEL) / 2, len(found) - 1) * spread)


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, half the width of its interval, and the paired t-test.

    Attributes
    ----------
    p : float
        Two-sided; nan where there is no test: with fewer than two pairs, or where all
        differences are one number other than zero. If all are zero it is 1.
    """

    seeds: tuple[int, ...]
    mean: float
    half: float
    p: float
    is_same: bool


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Compare two configurations over the seeds that both have, `values` minus `baseline`.

    A seed whose value is missing (nan) is left out.
    """
    common = sorted(values.keys() & baseline.keys())
    seeds = tuple(seed for seed in common if not math.isnan(values[seed] - baseline[seed]))
    differences = [values[seed] - baseline[seed] for seed in seeds]
    mean, half = interval(differences)
    is_same = bool(seeds) and not any(differences)
    if len(seeds) < 2:
        p = math.nan
    elif max(differences) - min(differences) < 1e-9:  # equal, but for rounding
        p = 1.0 if is_same else math.nan
    else:
        pairs = ([values[seed] for seed in seeds], [baseline[seed] for seed in seeds])
        p = float(stats.ttest_rel(*pairs).pvalue)
    return Difference(seeds, mean, half, p, is_same)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm, 1979); nan, no test made, stays nan."""
    tests = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(tests):
        highest = max(highest, min(1.0, (len(tests) - rank) * p))
        adjusted[i] = highest
    return adjusted


def non_dominated(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Tell for each point that no other costs no more and gains no less, one of them strictly."""
    points = list(zip(costs, gains, strict=True))
    return [
        not any(c <= cost and g >= gain and (c < cost or g > gain) for c, g in points)
        for cost, gain in points
    ]
