"""Each client's images as a folder that a real node can be given: what a simulation trains on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simulations.data.encoded import CHUNK, EncodedImages, NoImage
from simulations.data.images import DataError
from simulations.data.sources import Source
from simulations.data.splits import Split

TEST = "test"
"""Folder of the images to test on."""


def node_name(client: int) -> str:
    """Return what the folder of a client is called."""
    return f"node{client}"


def write_folders(source: Source, partitions: Sequence[NDArray[np.int64]], folder: Path) -> None:
    """Write DIR/node0/CLASS/IMAGE and so on, and DIR/test/CLASS/IMAGE, contents as they are.

    Files are numbered in the order in which a simulation uses them.

    Parameters
    ----------
    source : Source
        What the simulation opens.
    partitions : sequence of arrays
        Row numbers of its training split, by client.
    folder : Path
        Must be empty, or not there.

    Raises
    ------
    DataError
        The folder is not empty, a client holds nothing, a row has no image, or a class has a name
        that no folder can have.
    OSError
        The folder cannot be written to.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{str(folder)!r} is not empty; give a new folder")
    for name in source.class_names:
        if "/" in name or "," in name or name.startswith(".") or name != name.strip():
            raise DataError(f"the class {name!r} cannot be the name of a folder; rename it")
    for client, rows in enumerate(partitions):
        if not len(rows):
            raise DataError(f"client {client} holds no images; take another partition")
    for client, rows in enumerate(partitions):
        _write(
            source, source.train.take(rows), source.train_labels[rows], folder / node_name(client)
        )
    _write(source, source.test, source.test_labels, folder / TEST)


def spec_of(source: Source, folder: Path) -> str:
    """Return the data set that an experiment on such folders has."""
    return f"nodes(test={str(folder / TEST)!r}, classes={', '.join(source.class_names)!r})"


def _write(source: Source, split: Split, labels: NDArray[np.int64], folder: Path) -> None:
    images = EncodedImages(split.table, source.image, split.rows)
    width = len(str(len(images)))
    for label in np.unique(labels):
        (folder / source.class_names[label]).mkdir(parents=True)
    for start in range(0, len(images), CHUNK):
        numbers = np.arange(start, min(start + CHUNK, len(images)))
        for number, contents in zip(numbers, images[numbers], strict=True):
            if isinstance(contents, NoImage):
                raise DataError(f"the image of {images.name(int(number))}: {contents}")
            name = f"{number:0{width}}{_suffix(contents)}"
            (folder / source.class_names[labels[number]] / name).write_bytes(contents)


def _suffix(contents: bytes) -> str:
    """Return how the name of such an image file ends."""
    kind = Image.open(io.BytesIO(contents)).format or ""
    Image.init()
    return next(suffix for suffix, found in Image.EXTENSION.items() if found == kind)
