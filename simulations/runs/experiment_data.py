"""Data of an experiment: opened, looked at, partitioned, decoded.

Runs of one process that are compared share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_split.models import MODELS, Loaded, build
from fl_split.models.preprocessing import Preprocessing
from fl_split.specs import shortened
from simulations.data import partition
from simulations.data.cache import GB, Progress
from simulations.data.decoding import Surveyed, Wishes, decide, decode, look_at
from simulations.data.descriptions import Dataset, Nodes
from simulations.data.images import Images
from simulations.data.ragged import Ragged
from simulations.data.samples import Samples
from simulations.data.showing import View
from simulations.data.skew import skewed
from simulations.data.sources import Source
from simulations.data.splits import Decision
from simulations.runs.cuts import split
from simulations.runs.experiment import Experiment


def silent(text: str, done: int, total: int) -> None:
    """Show no progress."""


def prepare_labels(experiment: Experiment) -> tuple[Samples, list[str], partition.Unheld]:
    """Load and partition labels without decoding an image.

    Returns
    -------
    table : Samples
        Labels and who holds them; its images have no pixels.
    names : list of str
        Names of the classes.
    unheld : Unheld
        What the partition leaves to nobody.

    Raises
    ------
    ValueError
        Data that cannot be loaded, or a partition that cannot be satisfied.
    """
    e = experiment
    source = opened(e)
    partitions, shards, nobodys = partitioned(source, e)
    labels, names = source.train_labels, source.class_names
    pixels = np.empty((len(labels), 0, 0, 0), dtype=np.uint8)
    table = Samples(pixels, labels, partitions, len(names), [0.0], [1.0])
    return skewed(table, e.parts.skew, e.seed, shards), names, nobodys


def unheld(experiment: Experiment) -> partition.Unheld:
    """Return what the partition of an experiment leaves to nobody; raise as `prepare` does."""
    e = experiment
    return _split(opened(e), e.partition, e.clients, e.seed)[1]


def partitioned(
    source: Source, e: Experiment
) -> tuple[Ragged, dict[int, NDArray[np.int64]], partition.Unheld]:
    """Rows that clients train on, those that they hold back, and what nobody holds."""
    if isinstance(e.parts.dataset, Nodes):
        raise ValueError("dataset: nodes() is for `flwr run` on real nodes; here give the images")
    parts, nobodys = _split(source, e.partition, e.clients, e.seed)
    return *partition.hold_out(parts, e.holdout, seed=e.seed), nobodys


def forget() -> None:
    """Forget the data that earlier runs of this process have read: files may have changed."""
    _split.cache_clear()
    _open.cache_clear()
    _LOOKED.clear()
    _DECODED.clear()


@lru_cache(maxsize=16)
def _split(source: Source, spec: str, clients: int, seed: int) -> tuple[Ragged, partition.Unheld]:
    """Return the rows of every client and what nobody holds; the cells of a study share them."""
    rows = source.train.others(source.image, source.label, source.train_labels)
    parts = partition.split(
        rows, spec, clients=clients, label=source.label, seed=seed, held_out=source.is_held_out
    )
    return parts, partition.unheld(parts, source.train_labels, source.class_names)


@lru_cache(maxsize=1)
def _open(dataset: Dataset, test_fraction: float, seed: int) -> Source:
    """Open a data set; runs that are compared share it."""
    return dataset.open(test_fraction, seed)


class _Last:
    """Keeps what was made last, and what for: runs that are compared share it."""

    def __init__(self) -> None:
        self._kept: list[tuple[Any, Any]] = []

    def of(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made for `key`, or make it."""
        if not self._kept or self._kept[0][0] != key:
            self._kept = []  # both might not fit into memory
            self._kept = [(key, make())]
        return self._kept[0][1]

    def clear(self) -> None:
        """Forget it."""
        self._kept = []


_LOOKED, _DECODED = _Last(), _Last()


def opened(e: Experiment) -> Source:
    """Open the data; if images are to be skipped that cannot be used, look at all of them."""
    with named("dataset"):
        if e.on_bad_image == "skip":
            return look(e, silent).source
        return _open(e.parts.dataset, e.test_fraction, e.seed)


def look(e: Experiment, progress: Progress, decodes: bool = False) -> Surveyed:
    """Open the data and look at all images, also decoded; DataError if some cannot be used."""
    source = _open(e.parts.dataset, e.test_fraction, e.seed)
    key = source, e.on_bad_image, decodes
    found: Surveyed = _LOOKED.of(key, lambda: look_at(source, e.on_bad_image, progress, decodes))
    return found


def images(
    looked: Surveyed,
    e: Experiment,
    shape: tuple[int, int, int],
    wanted: Preprocessing,
    progress: Progress,
) -> tuple[Images, Images, list[Decision]]:
    """Return decoded images to train and to test on, and all that was decided about the data.

    Parameters
    ----------
    looked : Surveyed
        From :func:`look`.
    e : Experiment
        Says what was asked for.
    shape : tuple
        (C, H, W) that the model takes.
    wanted : Preprocessing
        How the model wants its images; what the experiment asks for comes first.
    progress : Callable
        Told of work on many images.
    """
    train, test, decisions = decide(looked, _wishes(e), shape[1], shape[0], wanted)
    limit = e.cache_gb * GB
    key = looked, train, test, limit
    make = partial(decode, looked, e.dataset, (train, test), limit, progress)
    first, second, cached = _DECODED.of(key, make)
    return first, second, [*looked.source.decisions, *looked.decisions, *decisions, *cached]


def tested_as(
    looked: Surveyed, e: Experiment, shape: tuple[int, int, int], wanted: Preprocessing
) -> Preprocessing:
    """Return what is done to test images, where the model and the experiment want something."""
    _, test, _ = decide(looked, _wishes(e), shape[1], shape[0], wanted)
    mean, std = (one * shape[0] if len(one) == 1 else one for one in (wanted.mean, wanted.std))
    return replace(wanted, mean=mean, std=std, resize=test.fit, shortest=test.shortest)


def view(e: Experiment, progress: Progress = silent, decodes: bool = False) -> View:
    """Return what would be trained on: images as the model takes them, if one is named.

    With `decodes` each image is decoded, so that none stops a run later.
    """
    with named("dataset"):
        looked = look(e, progress, decodes)
    survey, wanted = looked.survey, Preprocessing()
    notes: tuple[str, ...] = ()
    shape = (e.channels or survey.channels, *[e.image_size or survey.side] * 2)
    if "model" in e.model_fields_set:  # else no checkpoint is read, no model built
        loaded, spec = built(e, pictured(e, looked)), e.parts.model
        shape = split(e, loaded.module)[0].image_shape
        check_input(e, shape)
        wanted, notes = spec.preprocessing(), loaded.notes_on(looked.source.class_names)
    with named("dataset"):
        train, _, decisions = decide(looked, _wishes(e), shape[1], shape[0], wanted)
    decisions += [Decision("model", note) for note in notes]
    return View(looked, train, [*looked.source.decisions, *looked.decisions, *decisions])


@dataclass(frozen=True)
class Pictured:
    """What a model is built for.

    Attributes
    ----------
    image_size, channels : int
        Side of its images in pixels; 1 for grey, 3 for colour.
    class_names : list of str
        Class 0, 1, ...
    sizes : str
        Which sizes the images have, for messages.
    """

    image_size: int
    channels: int
    class_names: list[str]
    sizes: str = ""


def pictured(e: Experiment, looked: Surveyed) -> Pictured:
    """Return what the model is built for, for the images and classes that there are."""
    size, channels = e.image_size or looked.survey.side, e.channels or looked.survey.channels
    return Pictured(size, channels, looked.source.class_names, looked.sizes())


def built(e: Experiment, seen: Pictured) -> Loaded:
    """Build the model for the images and classes that there are."""
    spec = e.parts.model
    with named("model"), sized(seen):
        loaded = build(
            spec,
            image_size=seen.image_size,
            channels=seen.channels,
            num_classes=len(seen.class_names),
            seed=e.seed,
        )
        spec.preprocessing()  # which may be refused
    return loaded


def check_input(e: Experiment, shape: tuple[int, ...]) -> None:
    """Raise ValueError if the model takes images (C, H, W) other than were asked for."""
    for key, asked, taken in zip(
        ("channels", "image_size"), (e.channels, e.image_size), shape, strict=False
    ):
        if asked not in {0, taken}:
            raise ValueError(
                f"{key}={asked}, but {shortened(e.model, MODELS)} takes {taken}: leave {key} out, "
                f"or name a model of {asked}"
            )


def _wishes(e: Experiment) -> Wishes:
    return Wishes(e.resize, e.test_resize, e.channels)


def fingerprint(looked: Surveyed, partitions: Ragged) -> dict[str, str]:
    """Return digests of what results depend on, in the order of what to look at first."""
    source = looked.source
    parts = {
        "classes": "\n".join(source.class_names).encode(),
        "images": " ".join(looked.digests).encode(),
        "training rows": source.train.rows.tobytes(),
        "test rows": source.test.rows.tobytes(),
        "labels": source.train_labels.tobytes() + source.test_labels.tobytes(),
        "partition": partitions.flat.tobytes() + partitions.bounds.tobytes(),
    }
    return {name: blake2b(part, digest_size=8).hexdigest() for name, part in parts.items()}


@contextmanager
def sized(seen: Pictured) -> Iterator[None]:
    """Add to a complaint about the image size which sizes there are, and what to do."""
    try:
        yield
    except ValueError as error:
        if "image size" not in str(error):
            raise
        raise ValueError(
            f"{error}; the images are {seen.sizes}: image_size=... resizes them"
        ) from None


@contextmanager
def named(key: str) -> Iterator[None]:
    """Say which key a complaint is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
