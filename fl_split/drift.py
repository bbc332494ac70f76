"""Drift: how far the weights of clients are apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def drift(weights: Sequence[NDArray[np.float32]]) -> float:
    """Mean Euclidean distance of weight vectors to their mean."""
    centre = np.zeros_like(weights[0], dtype=np.float64)
    for vector in weights:
        centre += vector
    centre /= len(weights)
    # np.linalg.norm's last bits depend on the number of threads.
    return float(np.mean([np.sqrt(np.square(vector - centre).sum()) for vector in weights]))
