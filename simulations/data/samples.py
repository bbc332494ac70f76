"""Images and labels, as clients and server train on them, and who holds which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_split.accelerators import CPU
from fl_split.exchange.protocol import Batch
from fl_split.seeds import StepId
from simulations.data.augmentation import Augmentation, augmented
from simulations.data.images import Images, decodes, prefetch

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Images with labels, and who holds which rows.

    Attributes
    ----------
    pixels : Images
        (n, C, H, W), uint8 or uint16: an array, or what reads rows from a file or decodes them.
    labels : array
        (n,) int64.
    partitions : sequence of arrays
        Row numbers per client; disjoint.
    mean, std : list[float]
        Normalisation of pixels in [0, 1], one number or one per channel.
    """

    pixels: Images
    labels: Labels
    partitions: Sequence[NDArray[np.int64]]
    num_classes: int
    mean: list[float]
    std: list[float]

    def batch(
        self, rows: NDArray[np.int64] | slice, device: torch.device = CPU
    ) -> tuple[Tensor, Tensor]:
        """Return normalised pixels (B, C, H, W) float32 and labels (B,) int64, on `device`."""
        pixels, labels = self._read(rows, device)
        mean, std = (one.to(device) for one in self._scale)
        return pixels.sub_(mean).div_(std), labels

    def train_batch(
        self,
        rows: NDArray[np.int64],
        augment: Sequence[Augmentation],
        at: StepId,
        device: torch.device = CPU,
    ) -> Batch:
        """Return what a client trains on in a step: normalised, and before that augmented."""
        if not augment:
            return Batch(*self.batch(rows, device), self.num_classes)
        white = np.iinfo(self.pixels.dtype).max
        pixels, labels = self._read(rows, device)
        batch = augmented(Batch(pixels.div_(white), labels, self.num_classes), augment, at)
        mean, std = (one.to(device) / white for one in self._scale)
        return batch._replace(pixels=(batch.pixels - mean) / std)

    def _read(self, rows: NDArray[np.int64] | slice, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return pixels as they are stored, in float32, and labels, on `device`."""
        found, labels = self.pixels[rows], torch.from_numpy(self.labels[rows].copy())
        is_cast_there = device.type != "cpu" and found.dtype == np.uint8  # a quarter of the way
        found = found.copy() if is_cast_there else found.astype(np.float32)
        return torch.from_numpy(found).to(device).float(), labels.to(device)

    @cached_property
    def decodes(self) -> bool:
        """Whether images are decoded each time they are read."""
        return decodes(self.pixels)

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Begin to decode the images of a batch that will be asked for soon."""
        prefetch(self.pixels, rows)

    def label_counts(self, rows: NDArray[np.int64]) -> list[int]:
        """Return how many of `rows` each class has."""
        return np.bincount(self.labels[rows], minlength=self.num_classes).tolist()

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        white = np.iinfo(self.pixels.dtype).max
        mean, std = (white * torch.tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return mean, std
