"""A look at data before they are trained on: classes with counts, ten pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulations.data.decoding import Surveyed
from simulations.data.images import Decoded, decoded
from simulations.data.pictures import Transform
from simulations.data.sources import Source
from simulations.data.splits import Decision

if TYPE_CHECKING:  # importing costs a second
    from matplotlib.figure import Figure

SHOWN, ACROSS = 10, 5
"""Pictures, and how many stand side by side."""


@dataclass(frozen=True, eq=False)
class View:
    """What would be trained on.

    Attributes
    ----------
    looked : Surveyed
        The source, of which all images have been looked at.
    transform : Transform
        How training images become arrays.
    decisions : list of Decision
        All that was decided.
    """

    looked: Surveyed
    transform: Transform
    decisions: list[Decision]

    def pictures(self) -> tuple[Decoded, list[str]]:
        """Return ten training images (n, C, H, W), spaced evenly, and their classes."""
        source, store = self.looked.source, self.looked.stores[0]
        count = min(SHOWN, len(source.train))
        places = np.arange(count) * len(source.train) // count
        numbers = np.searchsorted(store.rows, source.train.rows[places])
        found = [
            decoded(contents, self.transform, store, int(number))
            for contents, number in zip(store[numbers], numbers, strict=True)
        ]
        return np.stack(found), [source.class_names[k] for k in source.train_labels[places]]


def classes(source: Source) -> list[tuple[str, int, int]]:
    """Return name, training images and test images of each class."""
    names = source.class_names
    train, test = (_counts(one, len(names)) for one in (source.train_labels, source.test_labels))
    return [(name, int(a), int(b)) for name, a, b in zip(names, train, test, strict=True)]


def _counts(labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    return np.bincount(labels, minlength=classes)


def draw(view: View, path: Path) -> None:
    """Draw the pictures of a view into a file.

    Raises
    ------
    ValueError
        The file cannot be written, or its ending names no format; or there are no training images.
    """
    if not len(view.looked.source.train):
        raise ValueError("there are no training images to draw")
    try:
        figure(view).savefig(path, dpi=120)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from None


def figure(view: View) -> Figure:
    """Draw the pictures of a view, with their classes."""
    from matplotlib.figure import Figure

    images, names = view.pictures()
    white = np.iinfo(images.dtype).max
    rows = -(-len(images) // ACROSS)
    drawn = Figure(figsize=(1.6 * ACROSS, 1.9 * rows), layout="constrained")
    for place, (image, name) in enumerate(zip(images, names, strict=True)):
        axis = drawn.add_subplot(rows, ACROSS, place + 1)
        shown = image.transpose(1, 2, 0) / white
        axis.imshow(shown.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name, fontsize=8, parse_math=False)
        axis.set_axis_off()
    return drawn
