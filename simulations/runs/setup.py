"""Builds the parts that run an experiment, the same on the server and in every worker."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_split.exchange.protocol import Exchange
from fl_split.exchange.records import HEAD, TAIL, Weights
from fl_split.flat import flatten, trained
from fl_split.models import MODELS, build
from fl_split.models.cut import Head, Tail, insert
from fl_split.specs import shortened
from simulations.clients.schedule import Schedule
from simulations.clients.worker import Worker
from simulations.data import partition
from simulations.data.samples import Labels, Pixels, Samples
from simulations.data.skew import skewed
from simulations.data.sources import Dataset, Source
from simulations.engines.memory import available_bytes
from simulations.runs.demand import check_demand
from simulations.runs.experiment import Experiment, Parts
from simulations.runs.origins import modules
from simulations.runs.trials import check_attention, try_link
from strategies.server.participants import Population


@dataclass(frozen=True)
class Setup:
    """An experiment whose data are loaded and whose model is built and cut.

    `shards` are rows of `train` that clients hold back, by client, to be tested on;
    `unheld` are rows and classes of `train` that the partition leaves to nobody; `model_notes`
    say what was decided about the model, as that its classifier was drawn anew.
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
    model_notes: list[str]

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
        """All clients with their samples, from which rounds choose."""
        e, parts = self.experiment, dict(enumerate(self.train.partitions))
        return Population(
            {client: len(rows) for client, rows in parts.items()},
            {client: self.train.label_counts(rows) for client, rows in parts.items()},
            e.fraction,
            e.batch_size,
            e.seed,
        )

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


def prepare(experiment: Experiment) -> Setup:
    """Load, partition, build and cut; whatever cannot work fails here, before training.

    Raises
    ------
    ValueError
        Data that cannot be loaded, a partition that cannot be satisfied, a model that
        cannot be built, or a cut outside it. The message names the key.
    """
    e = experiment
    with _named("dataset"):
        source = _open(e.parts.dataset, e.test_fraction, e.seed)
    partitions, shards, nobodys = _partition(source, e)
    spec, classes = e.parts.model, len(source.class_names)
    with _named("model"):
        loaded = build(
            spec,
            image_size=source.image_size,
            channels=source.channels,
            num_classes=classes,
            seed=e.seed,
        )
        model, pixels = loaded.module, spec.preprocessing()
        mean, std = list(pixels.mean), list(pixels.std)
    if spec.is_transformers:
        config: Any = model.config
        config.id2label = dict(enumerate(source.class_names))
        config.label2id = {name: label for label, name in enumerate(source.class_names)}
    model.train()  # checkpoints come in evaluation mode
    head, tail = spec.split(model, e.cut, e.end)
    with _named("model"):
        demand = check_demand(head, tail, e.batch_size, available_bytes())
    insert(head, tail, e.parts.codec, e.seed)
    e.parts.strategy.exchange(head).prepare(head, tail, e.seed)
    with _named("codec"):
        model_name = shortened(e.model, MODELS).partition("(")[0]
        check_attention(e.parts.codec, head, model_name)
        try_link(e.parts.link(), head, tail, classes)
    _check_strategy(e, partitions)
    channels, size, _ = head.image_shape
    with _named("dataset"):
        train, test = _decode(source, size, channels)
    return Setup(
        experiment=e,
        model=model,
        head=head,
        tail=tail,
        train=skewed(Samples(*train, partitions, classes, mean, std), e.parts.skew, e.seed, shards),
        test=Samples(*test, [], classes, mean, std),
        shards=shards,
        unheld=nobodys,
        class_names=source.class_names,
        model_notes=[*loaded.notes_on(source.class_names), *demand],
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
    with _named("dataset"):
        source = _open(e.parts.dataset, e.test_fraction, e.seed)
        labels = source.labels(source.train)
    partitions, shards, nobodys = _partition(source, e)
    names = source.class_names
    pixels = np.empty((len(labels), 0, 0, 0), dtype=np.uint8)
    table = Samples(pixels, labels, partitions, len(names), [0.0], [1.0])
    return skewed(table, e.parts.skew, e.seed, shards), names, nobodys


def unheld(experiment: Experiment) -> partition.Unheld:
    """Return what the partition of an experiment leaves to nobody; raise as `prepare` does."""
    e = experiment
    with _named("dataset"):
        source = _open(e.parts.dataset, e.test_fraction, e.seed)
    return _split(source, e.partition, e.clients, e.seed)[1]


def _partition(
    source: Source, e: Experiment
) -> tuple[list[NDArray[np.int64]], dict[int, NDArray[np.int64]], partition.Unheld]:
    """Rows that clients train on, those that they hold back, and what nobody holds."""
    parts, nobodys = _split(source, e.partition, e.clients, e.seed)
    return *partition.hold_out(parts, e.holdout, seed=e.seed), nobodys


def forget() -> None:
    """Forget the data that earlier runs of this process have read: files may have changed."""
    for kept in (_split, _open, _decode):
        kept.cache_clear()


@lru_cache(maxsize=16)
def _split(
    source: Source, spec: str, clients: int, seed: int
) -> tuple[list[NDArray[np.int64]], partition.Unheld]:
    """Return the rows of every client and what nobody holds; the cells of a study share them."""
    with _named("dataset"):
        labels = source.labels(source.train)
    rows = source.train.select_columns([c for c in source.train.features if c != source.image])
    parts = partition.split(rows, spec, clients=clients, label=source.label, seed=seed)
    return parts, partition.unheld(parts, labels, source.class_names)


@lru_cache(maxsize=1)
def _open(dataset: Dataset, test_fraction: float, seed: int) -> Source:
    """Open a data set; runs that are compared share it."""
    return dataset.open(test_fraction, seed)


@lru_cache(maxsize=1)
def _decode(source: Source, size: int, channels: int) -> list[tuple[Pixels, Labels]]:
    return [
        (source.pixels(half, size, channels), source.labels(half))
        for half in (source.train, source.test)
    ]


def _check_strategy(e: Experiment, partitions: Sequence[NDArray[np.int64]]) -> None:
    """Raise ValueError if strategy, codec, aggregation and number of clients do not agree."""
    strategy = e.parts.strategy
    with _named("strategy"):
        strategy.check(e.parts.codec)
    if e.aggregation != "fedavg()" and not strategy.averages:
        raise ValueError(f"aggregation: {e.strategy} averages nothing; leave it at fedavg()")
    sizes = {client: len(rows) for client, rows in enumerate(partitions)}
    clients = len(Population(sizes, {}, e.fraction, e.batch_size, e.seed).sample(1))
    least = e.parts.aggregation().least_clients
    if clients < least:
        raise ValueError(
            f"aggregation: {e.aggregation} needs {least} clients or more in a round, got {clients} "
            f"(fraction={e.fraction:g} of clients={e.clients} that hold samples)"
        )


@contextmanager
def _named(key: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
