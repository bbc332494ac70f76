"""Which patches of some test images a trained head lets go on, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fl_split.models.beside import Trace
from simulations.inference.trained import Trained

RATES = (0.1, 0.25, 0.5)
"""Shares of the patches that are shown, beside that of the run."""
MOST_IMAGES, MOST_PIXELS = 10, 64
"""How many images are shown, and how many pixels a side of each."""


@torch.no_grad()
def kept_patches(trained: Trained) -> pd.DataFrame | None:
    """Return the pixels of the first test image of each class, and which go on at each rate.

    Columns are `image` (its row), `class`, `rate`, `y`, `x`, `value` (gray, 0 to 1) and `kept`.
    None for a run in which all tokens go on.
    """
    selector = trained.head.selector
    if selector is None:
        return None
    images = _first_of_each_class(trained)
    pixels, labels = trained.test.batch(images)
    parts = []
    for rate in sorted({*RATES, selector.rate}):
        trace = Trace()
        trained.head.with_rate(rate)(pixels, trace)
        assert trace.went_on is not None
        side = int(trace.went_on.shape[1] ** 0.5)
        kept = trace.went_on.float().view(len(images), 1, side, side)
        size = min(MOST_PIXELS, pixels.shape[2])
        parts.append(_frame(_gray(pixels, size), functional.interpolate(kept, size), rate, images))
    names = [trained.setup.class_names[label] for label in labels.tolist()]
    found = pd.concat(parts, ignore_index=True)
    found["class"] = found["image"].map(dict(zip(images.tolist(), names, strict=True)))
    return found


def _first_of_each_class(trained: Trained) -> NDArray[np.int64]:
    _, first = np.unique(trained.test.labels, return_index=True)
    return first[:MOST_IMAGES].astype(np.int64)


def _gray(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Return images (B, 1, size, size) from 0 to 1, each from its darkest to its brightest."""
    gray = functional.interpolate(pixels.mean(dim=1, keepdim=True), size, mode="area")
    low, high = gray.amin((2, 3), keepdim=True), gray.amax((2, 3), keepdim=True)
    return (gray - low) / (high - low).clamp(min=1e-12)


def _frame(
    gray: torch.Tensor, kept: torch.Tensor, rate: float, images: NDArray[np.int64]
) -> pd.DataFrame:
    image, y, x = np.indices(gray.squeeze(1).shape).reshape(3, -1)
    return pd.DataFrame(
        {
            "image": images[image],
            "rate": rate,
            "y": y,
            "x": x,
            "value": gray.flatten().numpy().round(3),
            "kept": kept.flatten().numpy() > 0,
        }
    )
