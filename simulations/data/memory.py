"""Images in memory as a data set: arrays, tables, Hugging Face data sets, torch data sets."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from PIL import ExifTags, Image

from simulations.data import raw
from simulations.data.candidates import IMAGES, LABELS, chosen, usual
from simulations.data.images import DataError
from simulations.data.sources import Source, source
from simulations.data.splits import Decision, choose


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
    decisions : tuple of Decision
        What was decided about the data.
    """

    train: datasets.Dataset
    test: datasets.Dataset | None = None
    image: str = ""
    label: str = ""
    decisions: tuple[Decision, ...] = ()

    def __repr__(self) -> str:
        """Say how many images there are."""
        held_out = "" if self.test is None else f", {len(self.test):,} to test"
        return f"{len(self.train):,} images{held_out}"

    def fingerprint(self) -> str:
        """Return a digest of all images and labels with their types, files by their names."""
        digest = hashlib.blake2b(digest_size=8)
        for half in filter(None, (self.train, self.test)):
            digest.update(repr(half.features).encode())  # names of classes are no rows
            table = half.with_format("arrow")[:].combine_chunks()
            for batch in table.to_batches():
                digest.update(batch.serialize())
        return digest.hexdigest()

    def open(self, test_fraction: float, seed: int) -> Source:
        """Return the data set."""
        columns = self.image, self.label
        decided = self.decisions
        return source(self.train, self.test, *columns, test_fraction, seed, decisions=decided)


def in_memory(given: Any) -> InMemory:
    """Take images and labels as people have them.

    Parameters
    ----------
    given : object
        ``(images, labels)``: arrays or tensors, see :func:`as_pixels`, or lists of PIL images or
        files; a ``datasets.Dataset``; a table (``pandas.DataFrame``) with a column of files,
        arrays or PIL images and one of labels; a torch data set of ``(image, label)``. Two of
        these, ``(train, test)``; or a ``DatasetDict`` with a split ``train`` and perhaps ``test``.

    Raises
    ------
    DataError
        It is none of these, or its images cannot be read.
    """
    said: list[Decision] = []
    if isinstance(given, datasets.DatasetDict):
        if "train" not in given:
            raise DataError(f"a DatasetDict needs a split 'train'; it has {', '.join(given)}")
        train, test, said = choose(given, "train", "", "the DatasetDict")
        said = [replace(one, key="dataset=(splits['...'], splits['...'])") for one in said]
        given = (given[train], given[test]) if test else given[train]
    if isinstance(given, tuple | list) and len(given) == 2 and all(map(_is_split, given)):
        halves = [*map(_split, given)]
    else:
        halves = [_split(given)]
    decided = {one: None for one in [*said, *(one for _, some in halves for one in some)]}
    first, *second = [table for table, _ in halves]
    return InMemory(first, second[0] if second else None, decisions=(*decided,))


def as_pixels(images: Any) -> NDArray[np.unsignedinteger]:
    """Return images as (n, H, W) or (n, H, W, 3) of uint8, or (n, H, W) of uint16.

    Images may be (n, H, W), (n, H, W, C) or (n, C, H, W), C being 1 or 3; uint8, grey ones
    uint16, or floats from 0 to 1.

    Raises
    ------
    DataError
        Another shape, type or range.
    """
    table = np.asarray(images)
    if table.ndim == 4 and table.shape[1] in {1, 3} and table.shape[3] not in {1, 3}:
        table = table.transpose(0, 2, 3, 1)
    if table.ndim not in {3, 4} or (table.ndim == 4 and table.shape[3] not in {1, 3}):
        raise DataError(
            "images must be (n, H, W), (n, H, W, C) or (n, C, H, W) with 1 or 3 channels C, got "
            f"{table.shape}"
        )
    if table.ndim == 4 and table.shape[3] == 1:
        table = table[..., 0]
    if table.dtype == np.uint8 or (table.dtype == np.uint16 and table.ndim == 3):
        return table
    if table.dtype == bool or not np.issubdtype(table.dtype, np.floating):
        raise DataError(
            f"images must be uint8, grey uint16, or floats from 0 to 1; got {table.dtype}"
        )
    if not np.isfinite(table).all() or table.min() < 0 or table.max() > 1:
        raise DataError(
            f"images of floats must lie in 0 to 1, got {table.min():g} to {table.max():g}; "
            "scale them, or give uint8"
        )
    return np.rint(table * 255).astype(np.uint8)


def _is_split(given: Any) -> bool:
    """Tell a data set, or images with labels in one dimension, from images alone."""
    if isinstance(given, tuple | list) and len(given) == 2:
        labels = given[1]
        if getattr(labels, "ndim", 0) == 2:  # one-hot
            return getattr(given[0], "ndim", 0) > 2 and len(labels) == len(given[0])
        return hasattr(labels, "__len__") and not _is_split(labels) and np.ndim(labels) == 1
    return isinstance(given, datasets.Dataset | pd.DataFrame) or _is_torch(given)


def _is_torch(given: Any) -> bool:
    """Tell a torch data set, which need be of no class, from arrays, lists and the like."""
    has_rows = hasattr(given, "__getitem__") and hasattr(given, "__len__")
    return has_rows and not (isinstance(given, Sequence | Mapping) or hasattr(given, "__array__"))


def _split(given: Any) -> tuple[datasets.Dataset, list[Decision]]:
    """Make one split of any form, and say what was decided."""
    if isinstance(given, datasets.Dataset):
        if given.format["type"] == "custom":
            raise DataError("a datasets.Dataset has a transform; apply it, with map(), or drop it")
        return given.with_format(None), []
    if isinstance(given, pd.DataFrame):
        return _table(given)
    if isinstance(given, tuple | list) and len(given) == 2:
        return rows_of(*given), []
    if _is_torch(given):
        pairs = [given[row] for row in range(len(given))]  # iterating might never end
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise DataError(f"rows of {type(given).__name__} must be (image, label)")
        return rows_of([image for image, _ in pairs], [label for _, label in pairs]), []
    raise DataError(
        f"{type(given).__name__} is no data set; give (images, labels), a datasets.Dataset, a "
        "pandas.DataFrame with columns image and label, or a torch data set with a length"
    )


def _table(frame: pd.DataFrame) -> tuple[datasets.Dataset, list[Decision]]:
    frame = frame.rename(columns=str)
    images, labels = usual(frame, IMAGES), usual(frame, LABELS)
    if not images or not labels:
        raise DataError(
            f"a table needs a column of images ({', '.join(IMAGES)}) and one of labels "
            f"({', '.join(LABELS)}); it has {', '.join(map(str, frame))}"
        )
    image, first = chosen(images, "images", "column", "a table without the others")
    label, second = chosen(labels, "labels", "column", "a table without the others")
    said = [one for one in (first, second) if one.is_warning]
    return rows_of(frame[image], frame[label]), said


def rows_of(images: Any, labels: Any) -> datasets.Dataset:
    """Make a data set of images and labels, in their order; DataError if they are none."""
    for what, given in (("images", images), ("labels", labels)):
        if not hasattr(given, "__len__") or _is_split(given):
            raise DataError(f"{what} must be an array or a list, got {type(given).__name__}")
    if len(images) != len(labels) or not len(images):
        raise DataError(f"{len(images)} images, but {len(labels)} labels")
    classes, kind = _classes(labels)
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    pictures = _pictures(images)
    if isinstance(pictures, list):
        return datasets.Dataset.from_dict({"image": pictures, "label": classes}, features)
    answers = pa.array(classes, features.arrow_schema.field("label").type)
    table = pa.table([raw.column(pictures), answers], schema=features.arrow_schema)
    return datasets.Dataset(table, fingerprint="arrays")


def _pictures(images: Any) -> list[Any] | NDArray[np.unsignedinteger]:
    """Return PIL images or files, which the library encodes, or an array of pixels."""
    if not hasattr(images, "__array__") or images.dtype == object or isinstance(images, pd.Series):
        images = list(images)
        is_scalar = pd.api.types.is_scalar  # as None and NaN are, and no image
        missing = [row for row, one in enumerate(images) if is_scalar(one) and pd.isna(one)]
        if missing:
            raise DataError(f"{len(missing)} rows without an image, first row {missing[0]}")
        if all(isinstance(one, Image.Image) for one in images):
            return [_copied(one, row) for row, one in enumerate(images)]
        if all(isinstance(one, str | bytes | PathLike | Mapping) for one in images):
            return [str(one) if isinstance(one, PathLike) else one for one in images]
        arrays = [np.asarray(image) for image in images]
        if len({array.shape for array in arrays}) > 1:
            raise DataError(
                "arrays of images must have one shape; give PIL images, which may differ"
            )
        images = np.stack(arrays)
    return as_pixels(images)


def _copied(image: Image.Image, row: int) -> Image.Image | dict[str, Any]:
    """Return an image that remembers no file: what it shows is stored, without loss.

    The library would lose an orientation tag: such an image is stored with it.
    """
    try:
        if (turned := image.getexif().get(ExifTags.Base.Orientation, 1)) == 1:
            return image.copy()
        exif, file = Image.Exif(), io.BytesIO()
        exif[ExifTags.Base.Orientation] = turned
        stored = image.convert("RGB") if image.mode in {"CMYK", "YCbCr", "LAB", "HSV"} else image
        stored.save(file, "PNG", exif=exif)
    except Exception as error:  # each image format fails in its own way
        raise DataError(f"image {row} cannot be used: {error}") from None
    return {"bytes": file.getvalue(), "path": None}


def _classes(labels: Any) -> tuple[list[Any], Any]:
    """Return the label of each image, or the row of a table; None if missing; and their type."""
    if isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu":
        return labels.tolist(), datasets.Value("int64")
    if any(np.ndim(one) for one in labels):
        if not all(np.ndim(one) == 1 for one in labels):
            raise DataError("labels must be one number or text per image, (n,), or one-hot (n, k)")
        rows = [np.asarray(one).tolist() for one in labels]
        kinds = {type(value) for row in rows for value in row}
        if not kinds <= {bool, int, float}:
            raise DataError("several labels per image must be numbers, one-hot (n, k)")
        kind = float if float in kinds else int
        numbers = [[kind(value) for value in row] for row in rows]
        return numbers, datasets.List(datasets.Value(f"{kind.__name__}64"))
    values = [one.item() if hasattr(one, "item") else one for one in labels]
    values = [None if pd.isna(one) else one for one in values]
    kinds = {type(one) for one in values if one is not None}
    if kinds <= {int, float}:
        return values, datasets.Value("float64" if float in kinds else "int64")
    return [None if one is None else str(one) for one in values], datasets.Value("string")
