"""Decoded images, as clients and server train on them; imports no data set library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Decoded images with labels, and who holds which rows.

    Attributes
    ----------
    pixels : array
        (n, C, H, W) uint8.
    labels : array
        (n,) int64.
    partitions : sequence of arrays
        Row numbers per client; disjoint.
    mean, std : list[float]
        Normalisation of pixels in [0, 1], one number or one per channel.
    """

    pixels: Pixels
    labels: Labels
    partitions: Sequence[NDArray[np.int64]]
    num_classes: int
    mean: list[float]
    std: list[float]

    def batch(self, rows: NDArray[np.int64] | slice) -> tuple[Tensor, Tensor]:
        """Return normalised pixels (B, C, H, W) float32 and labels (B,) int64."""
        pixels = torch.from_numpy(self.pixels[rows].astype(np.float32))
        mean, std = self._scale
        return pixels.sub_(mean).div_(std), torch.from_numpy(self.labels[rows].copy())

    def label_counts(self, rows: NDArray[np.int64]) -> list[int]:
        """Return how many of `rows` each class has."""
        return np.bincount(self.labels[rows], minlength=self.num_classes).tolist()

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        mean, std = (255 * torch.tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return mean, std
