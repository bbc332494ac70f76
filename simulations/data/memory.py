"""Images in memory as a data set: arrays, tables, Hugging Face data sets, torch data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulations.data.sources import DataError, Source, source

PATHS = ("image", "path", "file", "file_name", "filename", "image_path")
"""Names of the column of images in a table, the first that is there."""

LABELS = ("label", "labels", "class", "target")
"""The same of classes."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """Images and labels that are there already.

    Attributes
    ----------
    train : datasets.Dataset
        With a column of images and one of labels.
    test : datasets.Dataset, optional
        Without it a part of `train` is held out, the experiment's `test_fraction`.
    image, label : str
        Names of the columns; empty finds them.
    """

    train: datasets.Dataset
    test: datasets.Dataset | None = None
    image: str = ""
    label: str = ""

    def __repr__(self) -> str:
        """Say how many images there are."""
        held_out = "" if self.test is None else f", {len(self.test):,} to test"
        return f"{len(self.train):,} images{held_out}"

    def fingerprint(self) -> str:
        """Return a digest of all images and labels, files by their names."""
        digest = hashlib.blake2b(digest_size=8)
        for half in filter(None, (self.train, self.test)):
            table = half.with_format("arrow")[:].combine_chunks()
            for batch in table.to_batches():
                digest.update(batch.serialize())
        return digest.hexdigest()

    def open(self, test_fraction: float, seed: int) -> Source:
        """Return the data set."""
        return source(self.train, self.test, self.image, self.label, test_fraction, seed)


def in_memory(given: Any) -> InMemory:
    """Take images and labels as people have them.

    Parameters
    ----------
    given : object
        ``(images, labels)`` or ``((images, labels), (test images, test labels))``, arrays or
        tensors, see :func:`as_uint8`; a ``datasets.Dataset``, or a ``DatasetDict`` with a split
        ``train`` and perhaps ``test``; a table (``pandas.DataFrame``) with a column of files,
        arrays or PIL images and one of labels; a torch data set of ``(image, label)``.

    Raises
    ------
    DataError
        It is none of these, or its images cannot be read.
    """
    if isinstance(given, datasets.DatasetDict):
        if "train" not in given:
            raise DataError(f"a DatasetDict needs a split 'train'; it has {', '.join(given)}")
        return InMemory(given["train"], given.get("test"))
    if isinstance(given, datasets.Dataset):
        return InMemory(given)
    if isinstance(given, pd.DataFrame):
        return _table(given)
    if isinstance(given, tuple | list) and len(given) == 2:
        if all(_is_pair(half) for half in given):
            return InMemory(*(_rows(*half) for half in given))
        return InMemory(_rows(*given))
    if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        images, labels = zip(*(given[row] for row in range(len(given))), strict=True)
        return InMemory(_rows(images, labels))
    raise DataError(
        f"{type(given).__name__} is no data set; give (images, labels), a datasets.Dataset, a "
        "pandas.DataFrame with columns image and label, or a torch data set"
    )


def as_uint8(images: Any) -> NDArray[np.uint8]:
    """Return images as (n, H, W) or (n, H, W, C) of uint8, C being 1 to 4.

    Images may be (n, H, W), (n, H, W, C) or (n, C, H, W); uint8, or floats from 0 to 1.

    Raises
    ------
    DataError
        Another shape, type or range.
    """
    table = np.asarray(images)
    if table.ndim == 4 and table.shape[1] in {1, 3} and table.shape[3] not in {1, 3, 4}:
        table = table.transpose(0, 2, 3, 1)
    if table.ndim not in {3, 4} or (table.ndim == 4 and table.shape[3] not in {1, 3, 4}):
        raise DataError(
            f"images must be (n, H, W), (n, H, W, C) or (n, C, H, W), got {table.shape}"
        )
    if table.ndim == 4 and table.shape[3] == 1:
        table = table[..., 0]
    if table.dtype == np.uint8:
        return table
    if table.dtype == bool or not np.issubdtype(table.dtype, np.floating):
        raise DataError(f"images must be uint8, or floats from 0 to 1; got {table.dtype}")
    if not np.isfinite(table).all() or table.min() < 0 or table.max() > 1:
        raise DataError(
            f"images of floats must lie in 0 to 1, got {table.min():g} to {table.max():g}; "
            "scale them, or give uint8"
        )
    return np.rint(table * 255).astype(np.uint8)


def _is_pair(half: Any) -> bool:
    """Tell images and their labels, in one dimension, from two images."""
    return isinstance(half, tuple | list) and len(half) == 2 and np.ndim(half[1]) == 1


def _rows(images: Any, labels: Any) -> datasets.Dataset:
    """Make a data set of images and labels, in their order."""
    classes = np.asarray(labels)
    if classes.ndim != 1 or len(classes) != len(images):
        raise DataError(f"{len(images)} images, but labels of shape {classes.shape}")
    pictures: Sequence[Any] = images
    if not _are_pictures(images):
        pictures = list(as_uint8(_stacked(images)))
    features = datasets.Features({"image": datasets.Image(), "label": _kind(classes)})
    return datasets.Dataset.from_dict(
        {"image": list(pictures), "label": classes.tolist()}, features
    )


def _table(frame: pd.DataFrame) -> InMemory:
    image = next((name for name in PATHS if name in frame), "")
    label = next((name for name in LABELS if name in frame), "")
    if not image or not label:
        raise DataError(
            f"a table needs a column of images ({', '.join(PATHS)}) and one of labels "
            f"({', '.join(LABELS)}); it has {', '.join(map(str, frame))}"
        )
    pictures = frame[image].tolist()
    if pictures and isinstance(pictures[0], np.ndarray):
        return InMemory(_rows(pictures, frame[label].to_numpy()))
    classes = frame[label].to_numpy()
    if pd.isna(classes).any():
        raise DataError(f"column {label!r} has rows without a label")
    features = datasets.Features({"image": datasets.Image(), "label": _kind(classes)})
    rows = {"image": [_file(one) for one in pictures], "label": classes.tolist()}
    return InMemory(datasets.Dataset.from_dict(rows, features))


def _are_pictures(images: Any) -> bool:
    """Tell whether images are PIL's, which the library encodes itself."""
    from PIL import Image

    return isinstance(images, list | tuple) and bool(images) and isinstance(images[0], Image.Image)


def _stacked(images: Any) -> Any:
    """Return one array; DataError if images differ in shape."""
    if not isinstance(images, list | tuple):
        return images
    arrays = [np.asarray(image) for image in images]
    if len({array.shape for array in arrays}) > 1:
        raise DataError("arrays of images must have one shape; give PIL images, which may differ")
    return np.stack(arrays)


def _kind(classes: NDArray[Any]) -> Any:
    is_number = np.issubdtype(classes.dtype, np.integer)
    return datasets.Value("int64" if is_number else "string")


def _file(picture: Any) -> Any:
    return str(picture) if hasattr(picture, "__fspath__") else picture
