"""Data sets: any Hugging Face image data set, or scikit-learn's digits, as uint8 tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import datasets
import numpy as np
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from fl_split.specs import STRICT
from fl_split.tables import Table
from simulations.data.samples import Labels, Pixels

Rows = Annotated[int, Field(ge=0)]

HELD_OUT = "A part of these rows is held out to test."
"""Description of training data whose rows have other numbers for that."""


class DataError(ValueError):
    """A data set that cannot be used, and why."""


@dataclass(frozen=True, eq=False)
class Source:
    """A data set before its images are decoded.

    Attributes
    ----------
    train, test : datasets.Dataset
        Disjoint splits; their labels may be numbered differently, names of classes count.
    image, label : str
        Names of the two columns that are used.
    class_names : list[str]
        Class 0, 1, ...
    """

    train: datasets.Dataset
    test: datasets.Dataset
    image: str
    label: str
    class_names: list[str]

    @property
    def image_size(self) -> int:
        """Longer side of the first image."""
        return max(self._first.size)

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colour, after the first image."""
        return 1 if self._first.mode in {"1", "L", "I", "I;16", "F"} else 3

    @property
    def _first(self) -> Image.Image:
        try:
            image = self.train[0][self.image]
            image.load()
        except Exception as error:
            raise DataError(f"image 0 cannot be used: {error}") from None
        return image

    def labels(self, split: datasets.Dataset) -> Labels:
        """Classes of all rows of `split`, (n,)."""
        values, feature = _values(split, self.label), split.features[self.label]
        position = {name: number for number, name in enumerate(self.class_names)}
        if isinstance(feature, datasets.ClassLabel):  # splits may number the classes differently
            numbers = {number: position.get(name, -1) for number, name in enumerate(feature.names)}
        else:
            numbers = {value: position.get(str(value), -1) for value in set(values)}
        classes = np.asarray([numbers.get(value, -1) for value in values], dtype=np.int64)
        if classes.size and not 0 <= classes.min() <= classes.max() < len(self.class_names):
            raise DataError(f"column {self.label!r} holds labels that are none of the classes")
        return classes

    def pixels(self, split: datasets.Dataset, size: int, channels: int) -> Pixels:
        """Decode and resize (bicubic) all images of `split` to (n, channels, size, size)."""
        table = np.empty((len(split), channels, size, size), dtype=np.uint8)
        rows = split.select_columns(self.image)
        for row in range(len(split)):
            try:
                table[row] = _pixels(rows[row][self.image], size, channels)
            except Exception as error:  # each image format fails in its own way
                raise DataError(f"image {row} cannot be used: {error}") from None
        return table


@runtime_checkable
class Dataset(Protocol):
    """A description of a data set; a frozen dataclass whose ``repr`` is its spec."""

    def open(self, test_fraction: float, seed: int) -> Source:
        """Open it; raise DataError if that cannot be done."""
        ...

    def __hash__(self) -> int:
        """Be the same for equal ones: runs share what is opened."""
        ...


@validated(frozen=True, config=STRICT)
class Digits:
    """The 1,797 handwritten digits that ship with scikit-learn, 8x8 grey; no download."""

    def open(self, test_fraction: float, seed: int) -> Source:
        """Return the data set with a stratified test split."""
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}
        )
        rows = {"image": list(pixels), "label": labels.tolist()}
        return source(datasets.Dataset.from_dict(rows, features), None, "", "", test_fraction, seed)


@validated(frozen=True, config=STRICT)
class Hub:
    """A Hugging Face image data set by name, for example hub(name='uoft-cs/cifar100').

    `image` and `label` name columns; by default the first of type Image and ClassLabel.
    Without a split called `test` (by default "test") a part of `train` is held out.
    `train_rows` and `test_rows` take only so many rows, evenly spaced; 0 takes all.
    """

    name: str
    config: str = ""
    train: str = "train"
    test: str = ""
    image: str = ""
    label: str = ""
    train_rows: Rows = 0
    test_rows: Rows = 0

    def open(self, test_fraction: float, seed: int) -> Source:
        """Download (or find in the cache) and return the data set."""
        found = _load(self.name, self.config or None)
        return _open(found, self.name, self, test_fraction, seed)


@validated(frozen=True, config=STRICT)
class Local:
    """Images on disk: a parquet file, or a folder of parquet files or of images by class.

    `image` and `label` name columns; by default the first of type Image and ClassLabel.
    Without a split called `test` (by default "test") a part of `train` is held out.
    `train_rows` and `test_rows` take only so many rows, evenly spaced; 0 takes all.
    """

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str
    train: str = "train"
    test: str = ""
    image: str = ""
    label: str = ""
    train_rows: Rows = 0
    test_rows: Rows = 0

    def open(self, test_fraction: float, seed: int) -> Source:
        """Read and return the data set."""
        path = Path(self.path).expanduser()
        if not self.path or not path.exists():
            raise DataError(f"no file or folder {self.path!r}")
        files = {"data_files": str(path)} if path.is_file() else {}
        found = _load("parquet" if files else str(path), None, **files)
        return _open(found, self.path, self, test_fraction, seed)


DATASETS: Table[type[Dataset]] = Table(
    Dataset, "fl_split.datasets", {"digits": Digits, "hub": Hub, "local": Local}
)


def _load(name: str, config: str | None, **files: str) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(name, config, **files)
    except Exception as error:  # the library raises a different type for every format
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise DataError(f"cannot load {files.get('data_files', name)!r}: {reason}") from None


def _open(
    found: datasets.DatasetDict, name: str, spec: Any, test_fraction: float, seed: int
) -> Source:
    for split in (spec.train, spec.test or spec.train):
        if split not in found:
            raise DataError(f"{name!r} has no split {split!r}; it has {', '.join(found)}")
    test = found.get(spec.test or "test")
    opened = source(found[spec.train], test, spec.image, spec.label, test_fraction, seed)
    train = _some(opened.train, spec.train_rows, "train_rows")
    return replace(opened, train=train, test=_some(opened.test, spec.test_rows, "test_rows"))


def _some(split: datasets.Dataset, rows: int, key: str) -> datasets.Dataset:
    """Return `rows` rows, evenly spaced: data sorted by class keep their class balance."""
    if rows > len(split):
        raise DataError(f"{key}={rows}, but there are {len(split)}")
    return split.select(np.arange(rows) * len(split) // rows) if rows else split


def source(
    train: datasets.Dataset,
    test: datasets.Dataset | None,
    image: str,
    label: str,
    test_fraction: float,
    seed: int,
) -> Source:
    """Return a data set of which `image` and `label` name columns, empty ones the first that fit.

    Raises
    ------
    DataError
        A column or a label is missing, there is one class only, a class is in the test split
        only, or nothing is left to train or to test on.
    """
    image = _column(train, image, datasets.Image, "image")
    label = _column(train, label, datasets.ClassLabel, "label")
    names = _class_names(train, label)
    if len(names) < 2:
        raise DataError(f"needs two classes or more, column {label!r} has {len(names)}")
    if test is None:
        train, test = _hold_out(train, label, test_fraction, seed)
        train.info.description = HELD_OUT
    _column(test, image, datasets.Image, "image")
    _column(test, label, datasets.ClassLabel, "label")
    if strange := [name for name in _class_names(test, label) if name not in names]:
        raise DataError(f"only the test split has the classes {', '.join(strange)}")
    if not len(train) or not len(test):
        raise DataError(f"needs images to train and to test on; has {len(train)} and {len(test)}")
    return Source(train, test, image, label, names)


def _values(split: datasets.Dataset, label: str) -> list[Any]:
    return split.with_format(None).select_columns(label)[label][:]


def _class_names(split: datasets.Dataset, label: str) -> list[str]:
    """Return the names of classes in their order; DataError for labels that are none."""
    values, feature = _values(split, label), split.features[label]
    missing = np.flatnonzero([value is None or value != value for value in values])  # NaN differs
    if count := missing.size:
        raise DataError(f"column {label!r}: {count} rows without a label, first row {missing[0]}")
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if not isinstance(feature, datasets.Value) or feature.dtype.startswith("float"):
        raise DataError(f"column {label!r} must hold whole numbers or text, holds {feature}")
    return [str(value) for value in sorted(set(values))]


def _pixels(image: Image.Image, size: int, channels: int) -> Pixels:
    if image.mode.startswith("I;16"):  # converting clips where it ought to scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise DataError(f"mode {image.mode!r} has no fixed range; store 8-bit images")
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = image.resize((size, size), resample=Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


def _column(split: datasets.Dataset, wanted: str, kind: type, what: str) -> str:
    features = split.features
    if wanted:
        if wanted not in features:
            raise DataError(f"no column {wanted!r} for {what}; columns: {', '.join(features)}")
        if kind is datasets.Image and not isinstance(features[wanted], kind):
            raise DataError(f"column {wanted!r} holds no images; columns: {', '.join(features)}")
        return wanted
    for name, feature in features.items():
        if isinstance(feature, kind):
            return name
    if what == "label" and what in features:
        return what
    raise DataError(
        f"no {what} column: none of {', '.join(features)} is of type {kind.__name__}; "
        f"name one with {what}='...'"
    )


def _hold_out(
    train: datasets.Dataset, label: str, test_fraction: float, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split off a test set, stratified by class, at least one sample of each class with two."""
    labels = np.asarray(_values(train, label))
    draw = np.random.default_rng([seed, 0])
    held = []
    for value in np.unique(labels):
        rows = draw.permutation(np.flatnonzero(labels == value))
        held.append(rows[: min(len(rows) - 1, math.ceil(test_fraction * len(rows)))])
    test = np.sort(np.concatenate([*held, []])).astype(np.int64)
    rest = np.setdiff1d(np.arange(len(labels)), test)
    return train.select(rest), train.select(test)
