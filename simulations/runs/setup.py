"""Builds the parts that run an experiment, the same on the server and in every worker."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_split.accelerators import find
from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.protocol import Exchange
from fl_split.exchange.records import HEAD, TAIL, Weights
from fl_split.exchange.stand_in import Shallower
from fl_split.flat import flatten, travelling
from fl_split.models.cut import Head, Tail
from fl_split.models.preprocessing import Preprocessing
from fl_split.recipe.descent import Recipe
from fl_split.recipe.precision import Precision
from simulations.clients import stack_size
from simulations.clients.epochs import Epochs
from simulations.clients.worker import Worker
from simulations.data import partition
from simulations.data.cache import Progress
from simulations.data.ragged import held_by
from simulations.data.samples import Samples
from simulations.data.showing import classes as classes_of
from simulations.data.skew import skewed
from simulations.data.splits import Decision
from simulations.runs import cuts, recipes
from simulations.runs.cut_weights import cut_weights
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import (
    fingerprint,
    images,
    look,
    named,
    partitioned,
    pictured,
    silent,
    tested_as,
)
from simulations.runs.halves import halves
from simulations.runs.origins import modules
from simulations.runs.parts import Parts
from simulations.runs.trials import check_channels
from simulations.system.devices import check_memory
from strategies.server.assignment import Assignment
from strategies.server.participants import Population
from strategies.server.stand_ins import StandIns


@dataclass(frozen=True)
class Setup:
    """An experiment whose data are loaded and whose model is built and cut.

    Attributes
    ----------
    shards : dict
        Rows of `train` that clients hold back, by client, to be tested on.
    unheld : Unheld
        Rows and classes of `train` that the partition leaves to nobody.
    model_notes : list of str
        What was decided about the model, as that its classifier was drawn anew.
    decisions : list of Decision
        What was decided about the data.
    fingerprint : dict
        Digests of images, labels, classes and partition: a run that goes on needs the same.
    classes : sequence
        Name, training images and test images of each class, before labels are skewed.
    client_bytes : int
        Memory that a client needs, estimated; of several cuts at the deepest.
    shallower : dict
        Where clients are cut that are not cut where `head` ends, by client.
    preprocessing : Preprocessing
        What is done to test images, and to those of whoever uses the trained model.
    knows_labels : bool
        Whether `train` has labels; a real node may say only how many images it has.
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
    model_notes: list[str] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    fingerprint: dict[str, str] = field(default_factory=dict)
    classes: Sequence[tuple[str, int | None, int]] = ()
    client_bytes: int = 0
    shallower: Mapping[int, Shallower] = field(default_factory=dict)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    knows_labels: bool = True

    @property
    def majority_accuracy(self) -> float | None:
        """Accuracy of always answering the most frequent class of the training data, if known."""
        if not self.knows_labels:
            return None
        rows = np.concatenate(self.train.partitions)
        commonest = np.bincount(self.train.labels[rows], minlength=self.train.num_classes).argmax()
        return float((self.test.labels == commonest).mean())

    def codec_weights(self) -> dict[str, Tensor]:
        """Weights of a codec, of a selector of tokens and of exits: none of them the model's."""
        return cut_weights(self.head, self.tail)

    @cached_property
    def device(self) -> torch.device:
        """What computes."""
        return find(self.experiment.device)

    @property
    def model_input(self) -> dict[str, int]:
        """What a model is built for: `image_size`, `channels`, `num_classes`."""
        channels, size, _ = self.head.image_shape
        return {"image_size": size, "channels": channels, "num_classes": self.train.num_classes}

    @property
    def exchange(self) -> Exchange:
        """What both halves do with one batch."""
        return recipes.exchange_of(self.experiment, self.head)

    @property
    def heads(self) -> list[Head]:
        """Heads of all cuts, the deepest one first."""
        return list(dict.fromkeys([self.head, *(one.head for one in self.shallower.values())]))

    def head_of(self, client: int) -> Head:
        """Return the head of a client, as its cut leaves it."""
        return self.shallower[client].head if client in self.shallower else self.head

    @property
    def parts(self) -> Parts:
        """What the experiment's spec strings describe."""
        return self.experiment.parts

    def initial_weights(self) -> dict[str, Weights]:
        """Flat weights of head and tail before training, without exits that clients keep."""
        halves = {HEAD: self.head, TAIL: self.tail}
        found = {name: flatten(travelling(half)) for name, half in halves.items()}
        return {name: Weights.of(vector.cpu().numpy()) for name, vector in found.items()}

    def population(self) -> Population:
        """All clients with their samples, from which rounds choose; of classes if need be."""
        e, with_labels = self.experiment, self.parts.strategy.needs_labels
        return Population(*held_by(self.train, with_labels), e.fraction, e.batch_size, e.seed)

    def epochs(self) -> Epochs:
        """Which samples make up which step."""
        e = self.experiment
        return Epochs(e.seed, e.batch_size, e.local_epochs, e.local_steps)

    def num_steps(self, samples: int, asked: Assignment) -> int:
        """Steps of a round of a client that holds so many samples."""
        return self.epochs().asked(asked).num_steps(samples)

    def recipe(self) -> Recipe:
        """How gradients become steps."""
        return recipes.recipe_of(self.experiment)

    def stack(self, known: int = 0) -> int:
        """Return how many heads run as one; 0 leaves it to trials.

        Before a resume it is `known` on a GPU: it may be less than what was asked for.
        """
        e, known = self.experiment, known if self.device.type != "cpu" else 0
        where = self.device, self.exchange, self.head, e.batch_size, e.clients
        return stack_size.of(*where, known or (0 if e.stack == "auto" else int(e.stack)))

    def worker(self, stack: int | None = None) -> Worker:
        """Return what a process needs to serve clients.

        `stack` heads run as one, by default as :meth:`stack` says.
        """
        parts = self.parts
        own = {client: place.head for client, place in self.shallower.items()}
        head, tail, heads = copy.deepcopy((self.head, self.tail, own))  # the server trains its own
        return Worker(
            self.train,
            head,
            tail,
            self.exchange,
            parts.link(self.device),
            parts.head_optimizer,
            parts.tail_optimizer,
            self.epochs(),
            self.recipe(),
            parts.augment,
            self.modules(),
            self.device,
            self.experiment.deterministic,
            self.stack() if stack is None else stack,
            shallower=heads,
        )

    def stand_ins(self, graphs: GraphMemory) -> StandIns:
        """Return what the server trains for clients that are cut before `head` ends."""
        precision, parts = Precision(self.experiment.precision), self.parts
        return StandIns(self.shallower, parts.head_optimizer, self.recipe(), precision, graphs)

    def modules(self) -> list[str]:
        """Name the modules that the parts of a worker are of; some may be the user's."""
        layers = {type(layer).__module__ for layer in self.model.modules()}
        return sorted({*layers, *modules(self.experiment)})


def prepare(experiment: Experiment, progress: Progress = silent) -> Setup:
    """Load, partition, build and cut; whatever cannot work fails here, before training.

    `progress` is told of work on many images.

    Raises
    ------
    ValueError
        A device that is not there, data that cannot be loaded, a partition that cannot be
        satisfied, a model that cannot be built, or a cut outside it. The message names the key.
    """
    e = experiment
    recipes.check_device(e)
    if e.parts.strategy.sends_smashed_data:
        check_channels(e.parts.link(), bool(e.end))
    with named("dataset"):
        looked = look(e, progress)
    source = looked.source
    partitions, shards, nobodys = partitioned(source, e)
    classes = len(source.class_names)
    model, head, tail, places, notes = halves(e, pictured(e, looked))
    recipes.check_run(e, partitions)
    needed = cuts.client_bytes_of(e, head, tail, places, partitions.sizes)
    if e.parts.system:
        with named("system"):
            check_memory(e.parts.system.fleet(e.clients, e.seed), needed)
    with named("dataset"):
        wanted = e.parts.model.preprocessing()
        train, test, decisions = images(looked, e, head.image_shape, wanted, progress)
        tested = tested_as(looked, e, head.image_shape, wanted)
    mean, std = list(wanted.mean), list(wanted.std)
    setup = Setup(
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
        model_notes=notes,
        decisions=[*decisions, *(Decision("model", note) for note in notes)],
        fingerprint=fingerprint(looked, partitions),
        classes=classes_of(source),
        client_bytes=int(needed.max()),
        shallower=places,
        preprocessing=tested,
    )
    return replace(setup, decisions=[*setup.decisions, *unsent(setup)])


def unsent(setup: Setup) -> list[Decision]:
    """Warn of clients whose samples are never sent, where each is to send them once."""
    e = setup.experiment
    rounds = [n for n in range(1, e.rounds + 1) if setup.exchange.only_sends(n)]
    if not rounds:  # no work at the start of all other runs
        return []
    population = setup.population()
    asked = {k for n in rounds for k in e.parts.strategy.choose(population, n)}
    missing = [k for k in population.holders if k not in asked]
    if not missing:
        return []
    samples = sum(population.samples[k] for k in missing)
    text = (
        f"{len(missing)} of {len(population.holders)} clients, with {samples:,} of "
        f"{sum(population.samples.values()):,} samples, take part in no round that sends: the tail "
        "never learns from them"
    )
    return [Decision("strategy", text, "rounds, fraction", is_warning=True)]
