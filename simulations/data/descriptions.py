"""Descriptions of data sets, by name: digits, those of the Hugging Face hub, files on disk."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import datasets
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from fl_split.specs import STRICT
from fl_split.tables import Table
from simulations.data import files, splits
from simulations.data.images import DataError
from simulations.data.node_folders import read_folder
from simulations.data.sources import Source, source

Rows = Annotated[int, Field(ge=0)]


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
        return source(_digits(), None, "", "", test_fraction, seed)


@cache
def _digits() -> datasets.Dataset:
    """Return all digits, once a process: to make images of them takes longer than a small run.

    The table cannot be changed in place, and the digits never change.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}
    )
    rows = {"image": list(pixels), "label": labels.tolist()}
    return datasets.Dataset.from_dict(rows, features)


@validated(frozen=True, config=STRICT)
class Hub:
    """A Hugging Face image data set by name, for example hub(name='uoft-cs/cifar100').

    `train`, `test`, `image` and `label` name splits and columns; by default they are found by
    their names and types, and what was found is said. Without a split to test on a part of
    `train` is held out. `train_rows` and `test_rows` take only so many rows, evenly spaced; 0
    takes all. Rows without a value in the columns `drop_missing`, with commas between, are left
    out.
    """

    name: str
    config: str = ""
    train: str = ""
    test: str = ""
    image: str = ""
    label: str = ""
    train_rows: Rows = 0
    test_rows: Rows = 0
    drop_missing: str = ""

    def open(self, test_fraction: float, seed: int) -> Source:
        """Download (or find in the cache) and return the data set."""
        found = files.load(self.name, self.name, config=self.config or None)
        return _open(found, self.name, self, test_fraction, seed)


@validated(frozen=True, config=STRICT)
class Local:
    """Images on disk: a file, or a folder of files or of images by class.

    Read are folders of images by class, with or without folders for splits; Parquet and Arrow
    files and folders of them; folders made by ``save_to_disk``; archives (zip, tar); NumPy arrays
    (npz); tables (csv, tsv, xlsx) of file names and labels beside images, or of pixels.

    `train`, `test`, `image` and `label` name splits and columns; by default they are found by
    their names and types, and what was found is said. Without a split to test on a part of
    `train` is held out. `train_rows` and `test_rows` take only so many rows, evenly spaced; 0
    takes all. Rows without a value in the columns `drop_missing`, with commas between, are left
    out.
    """

    path: str
    train: str = ""
    test: str = ""
    image: str = ""
    label: str = ""
    train_rows: Rows = 0
    test_rows: Rows = 0
    drop_missing: str = ""

    paths: ClassVar[tuple[str, ...]] = ("path",)

    def open(self, test_fraction: float, seed: int) -> Source:
        """Read and return the data set."""
        found = files.read(self.path, image=self.image, label=self.label)
        return _open(found, self.path, self, test_fraction, seed)


@validated(frozen=True, config=STRICT, kw_only=True)
class Nodes:
    """Images of real nodes: each has a folder of its own, and the server has test images only.

    `test` is the server's folder, with a folder of images for each class. `classes` names all
    classes, with commas between, where the test images do not have all of them or their numbers
    shall not go by the alphabet. Only `flwr run` on SuperNodes takes it; the folder of a node is
    ``dataset-path`` of its node config.
    """

    test: str
    classes: str = ""

    paths: ClassVar[tuple[str, ...]] = ("test",)

    def open(self, test_fraction: float, seed: int) -> Source:
        """Read the test images; nobody but nodes has any to train on."""
        found = read_folder(self.test)
        names = [name.strip() for name in self.classes.split(",") if name.strip()]
        names = names or sorted({*found.classes})
        if len(names) < 2 or len({*names}) < len(names):
            raise DataError(f"needs two different classes or more, got {', '.join(names)}")
        labels = found.labels(names)
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
        )
        rows = {"image": [*map(str, found.paths)], "label": labels.tolist()}
        tested = splits.Split.whole(datasets.Dataset.from_dict(rows, features))
        none = np.empty(0, dtype=np.int64)
        said = splits.Decision("splits", "nodes hold what is trained on, each in its own folder")
        return Source(
            tested.take(none), tested, none, labels, "image", "label", names, decisions=[said]
        )


DATASETS: Table[type[Dataset]] = Table(
    Dataset, "fl_split.datasets", {"digits": Digits, "hub": Hub, "local": Local, "nodes": Nodes}
)


def _open(found: files.Found, name: str, spec: Any, test_fraction: float, seed: int) -> Source:
    train, test, decisions = splits.choose(found.splits, spec.train, spec.test, name)
    if not found.splits:
        raise DataError(f"{name!r} holds no images")
    return source(
        found.splits[train],
        found.splits[test] if test else None,
        found.image or spec.image,
        found.label or spec.label,
        test_fraction,
        seed,
        drop_missing=spec.drop_missing,
        train_rows=spec.train_rows,
        test_rows=spec.test_rows,
        decisions=[*found.decisions, *decisions],
    )
