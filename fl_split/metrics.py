"""Metrics of predictions and of how they differ between clients: pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[float] | NDArray[np.floating]


def by_class(
    right: NDArray[np.bool_], labels: NDArray[np.int64], num_classes: int
) -> NDArray[np.float64]:
    """Accuracy within each class, (C,); not a number for a class without samples."""
    samples = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels[right], minlength=num_classes)
    return np.divide(hits, samples, out=np.full(num_classes, math.nan), where=samples > 0)


def calibration_error(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 15
) -> float:
    """Expected calibration error (Guo et al., ICML 2017): mean gap of confidence and accuracy.

    Confidences (N,) in 0..1 fall into `bins` of one width; gaps count by the samples in them.
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def worst(accuracies: Numbers, share: float = 0.1) -> float:
    """Mean of the worst `share` of the clients, rounded up."""
    ordered = np.sort(np.asarray(accuracies, dtype=float))
    return float(ordered[: max(1, math.ceil(share * len(ordered)))].mean())


def jain(accuracies: Numbers) -> float:
    """Jain's fairness index (sum x)^2 / (n sum x^2): 1 if all are equal, 1/n if one has all."""
    values = np.asarray(accuracies, dtype=float)
    squares = len(values) * np.square(values).sum()
    return float(np.square(values.sum()) / squares) if squares else 1.0


def performance_gap(class_accuracies: Numbers) -> float:
    """Best class less worst class: what skewed labels and a fixed order of clients widen."""
    return float(np.nanmax(class_accuracies) - np.nanmin(class_accuracies))


def backward_transfer(now: Numbers, best: Numbers) -> float:
    """Mean over classes of accuracy less the best so far: 0 if nothing was forgotten, else less."""
    return float(np.nanmean(np.asarray(now) - np.asarray(best)))
