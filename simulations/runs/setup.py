"""Builds the parts that run an experiment, the same on the server and in every worker."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_split.exchange.protocol import Exchange
from fl_split.exchange.records import HEAD, TAIL, Weights
from fl_split.flat import flatten, trained
from fl_split.models import MODELS
from fl_split.models.cut import Head, Tail, insert
from fl_split.specs import shortened
from simulations.clients.schedule import Schedule
from simulations.clients.worker import Worker
from simulations.data import partition
from simulations.data.cache import GB, Progress
from simulations.data.decoding import Surveyed, Wishes, decide, decode, look_at
from simulations.data.descriptions import Dataset
from simulations.data.images import Images
from simulations.data.pictures import Transform
from simulations.data.ragged import Ragged, held_by
from simulations.data.samples import Samples
from simulations.data.skew import skewed
from simulations.data.sources import Source
from simulations.data.splits import Decision
from simulations.runs.experiment import Experiment, Parts
from simulations.runs.origins import modules
from simulations.runs.trials import check_attention, try_link
from strategies.server.participants import Population


@dataclass(frozen=True)
class Setup:
    """An experiment whose data are loaded and whose model is built and cut.

    Attributes
    ----------
    shards : dict
        Rows of `train` that clients hold back, by client, to be tested on.
    unheld : Unheld
        Rows and classes of `train` that the partition leaves to nobody.
    decisions : list of Decision
        What was decided about the data.
    fingerprint : dict
        Digests of images, labels, classes and partition: a run that goes on needs the same.
    """

    experiment: Experiment
    model: nn.Module
    head: Head
    tail: Tail
    train: Samples
    test: Samples
    shards: dict[int, NDArray[np.int64]]
    unheld: partition.Unheld
    class_names: list[str]
    decisions: list[Decision] = field(default_factory=list)
    fingerprint: dict[str, str] = field(default_factory=dict)

    @property
    def majority_accuracy(self) -> float:
        """Accuracy of always answering the most frequent class of the training data."""
        rows = np.concatenate(self.train.partitions)
        commonest = np.bincount(self.train.labels[rows], minlength=self.train.num_classes).argmax()
        return float((self.test.labels == commonest).mean())

    def codec_weights(self) -> dict[str, Tensor]:
        """Weights at the cut that belong to the codec and not to the model."""
        both = {"encoder": self.head.encoder, "decoder": self.tail.decoder}
        return {
            f"{half}.{name}": weight.detach().clone()
            for half, module in both.items()
            for name, weight in module.state_dict().items()
        }

    @property
    def model_input(self) -> dict[str, int]:
        """What a model is built for: `image_size`, `channels`, `num_classes`."""
        channels, size, _ = self.head.image_shape
        return {"image_size": size, "channels": channels, "num_classes": self.train.num_classes}

    @property
    def exchange(self) -> Exchange:
        """What both halves do with one batch."""
        return self.parts.strategy.exchange(self.head)

    @property
    def parts(self) -> Parts:
        """What the experiment's spec strings describe."""
        return self.experiment.parts

    def initial_weights(self) -> dict[str, Weights]:
        """Flat weights of head and tail before training."""
        halves = {HEAD: self.head, TAIL: self.tail}
        return {k: Weights.of(flatten(trained(half)).numpy()) for k, half in halves.items()}

    def population(self) -> Population:
        """All clients with their samples, from which rounds choose; of classes if need be."""
        e, with_labels = self.experiment, self.parts.strategy.needs_labels
        return Population(*held_by(self.train, with_labels), e.fraction, e.batch_size, e.seed)

    def schedule(self) -> Schedule:
        """Which samples make up which step."""
        e = self.experiment
        return Schedule(e.seed, e.batch_size, e.local_epochs, e.local_steps)

    def worker(self) -> Worker:
        """Return what a process needs to serve clients."""
        parts = self.parts
        return Worker(
            self.train,
            *copy.deepcopy((self.head, self.tail)),  # the server trains its own
            self.exchange,
            parts.link(),
            parts.head_optimizer,
            parts.tail_optimizer,
            self.schedule(),
            self.modules(),
        )

    def modules(self) -> list[str]:
        """Name the modules that the parts of a worker are of; some may be the user's."""
        layers = {type(layer).__module__ for layer in self.model.modules()}
        return sorted({*layers, *modules(self.experiment)})


def silent(text: str, done: int, total: int) -> None:
    """Show no progress."""


def prepare(experiment: Experiment, progress: Progress = silent) -> Setup:
    """Load, partition, build and cut; whatever cannot work fails here, before training.

    `progress` is told of work on many images.

    Raises
    ------
    ValueError
        Data that cannot be loaded, a partition that cannot be satisfied, a model that
        cannot be built, or a cut outside it. The message names the key.
    """
    e = experiment
    with _named("dataset"):
        looked = _look(e, progress)
    source = looked.source
    partitions, shards, nobodys = _partition(source, e)
    spec, classes = e.parts.model, len(source.class_names)
    with _named("model"), _sized(looked):
        model = spec.build(
            image_size=e.image_size or looked.survey.side,
            channels=e.channels or looked.survey.channels,
            num_classes=classes,
            seed=e.seed,
        )
        mean, std = spec.normalisation()
    if spec.is_transformers:
        config: Any = model.config
        config.id2label = dict(enumerate(source.class_names))
        config.label2id = {name: label for label, name in enumerate(source.class_names)}
    model.train()  # checkpoints come in evaluation mode
    head, tail = spec.split(model, e.cut, e.end)
    insert(head, tail, e.parts.codec, e.seed)
    e.parts.strategy.exchange(head).prepare(head, tail, e.seed)
    with _named("codec"):
        model_name = shortened(e.model, MODELS).partition("(")[0]
        check_attention(e.parts.codec, head, model_name)
        try_link(e.parts.link(), head, tail, classes)
    _check_strategy(e, partitions)
    channels, size, _ = head.image_shape
    wishes = _wishes(e)
    to_train, to_test, decisions = decide(looked, wishes, size, channels, None)
    with _named("dataset"):
        train, test, cached = _decode(
            looked, e.dataset, to_train, to_test, wishes.cache_bytes, progress
        )
    return Setup(
        experiment=e,
        model=model,
        head=head,
        tail=tail,
        train=skewed(
            Samples(train, source.train_labels, partitions, classes, mean, std),
            e.parts.skew,
            e.seed,
            shards,
        ),
        test=Samples(test, source.test_labels, [], classes, mean, std),
        shards=shards,
        unheld=nobodys,
        class_names=source.class_names,
        decisions=[*source.decisions, *looked.decisions, *decisions, *cached],
        fingerprint=_fingerprint(looked, partitions),
    )


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
    source = _source(e)
    partitions, shards, nobodys = _partition(source, e)
    labels, names = source.train_labels, source.class_names
    pixels = np.empty((len(labels), 0, 0, 0), dtype=np.uint8)
    table = Samples(pixels, labels, partitions, len(names), [0.0], [1.0])
    return skewed(table, e.parts.skew, e.seed, shards), names, nobodys


def unheld(experiment: Experiment) -> partition.Unheld:
    """Return what the partition of an experiment leaves to nobody; raise as `prepare` does."""
    e = experiment
    return _split(_source(e), e.partition, e.clients, e.seed)[1]


def _partition(
    source: Source, e: Experiment
) -> tuple[Ragged, dict[int, NDArray[np.int64]], partition.Unheld]:
    """Rows that clients train on, those that they hold back, and what nobody holds."""
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
    rows = source.train.others(source.image)
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


def _source(e: Experiment) -> Source:
    """Open the data; if images are to be skipped that cannot be used, look at all of them."""
    with _named("dataset"):
        if e.on_bad_image == "skip":
            return _look(e, silent).source
        return _open(e.parts.dataset, e.test_fraction, e.seed)


def _look(e: Experiment, progress: Progress) -> Surveyed:
    source = _open(e.parts.dataset, e.test_fraction, e.seed)
    key = source, e.on_bad_image
    found: Surveyed = _LOOKED.of(key, lambda: look_at(source, e.on_bad_image, progress))
    return found


def _decode(
    looked: Surveyed,
    name: str,
    train: Transform,
    test: Transform,
    limit: float,
    progress: Progress,
) -> tuple[Images, Images, list[Decision]]:
    key = looked, train, test, limit
    made = partial(decode, looked, name, (train, test), limit, progress)
    found: tuple[Images, Images, list[Decision]] = _DECODED.of(key, made)
    return found


def _wishes(e: Experiment) -> Wishes:
    return Wishes(
        e.image_size, e.channels, e.resize, e.test_resize, e.on_bad_image, e.cache_gb * GB
    )


def _fingerprint(looked: Surveyed, partitions: Sequence[NDArray[np.int64]]) -> dict[str, str]:
    """Return digests of what results depend on, in the order of what to look at first."""
    source = looked.source
    parts = {
        "classes": "\n".join(source.class_names).encode(),
        "images": " ".join(looked.digests).encode(),
        "training rows": source.train.rows.tobytes(),
        "test rows": source.test.rows.tobytes(),
        "labels": source.train_labels.tobytes() + source.test_labels.tobytes(),
        "partition": b"|".join(rows.tobytes() for rows in partitions),
    }
    return {name: blake2b(part, digest_size=8).hexdigest() for name, part in parts.items()}


def _check_strategy(e: Experiment, partitions: Ragged) -> None:
    """Raise ValueError if strategy, codec, aggregation and number of clients do not agree."""
    strategy = e.parts.strategy
    with _named("strategy"):
        strategy.check(e.parts.codec)
    if e.aggregation != "fedavg()" and not strategy.averages:
        raise ValueError(f"aggregation: {e.strategy} averages nothing; leave it at fedavg()")
    sizes = dict(enumerate(partitions.sizes.tolist()))
    clients = len(Population(sizes, {}, e.fraction, e.batch_size, e.seed).sample(1))
    least = e.parts.aggregation().least_clients
    if clients < least:
        raise ValueError(
            f"aggregation: {e.aggregation} needs {least} clients or more in a round, got {clients} "
            f"(fraction={e.fraction:g} of clients={e.clients} that hold samples)"
        )


@contextmanager
def _sized(looked: Surveyed) -> Iterator[None]:
    """Add to a complaint about the image size which sizes there are, and what to do."""
    try:
        yield
    except ValueError as error:
        if "image size" not in str(error):
            raise
        raise ValueError(
            f"{error}; the images are {looked.sizes()}: image_size=... resizes them"
        ) from None


@contextmanager
def _named(key: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
