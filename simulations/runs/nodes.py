"""A run on real nodes: each has its images in a folder of its own, the server has test images.

The server never sees a node's images. It tells all nodes what they must agree on, and a node tells
how many images it holds: that is all the server knows of its data before training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from simulations.clients.terms import Terms
from simulations.clients.worker import Worker
from simulations.data.decoding import Surveyed, Wishes, decide
from simulations.data.descriptions import Nodes
from simulations.data.images import DataError
from simulations.data.node_folders import FolderImages, read_folder
from simulations.data.node_writing import spec_of, write_folders
from simulations.data.partition import Unheld, unheld
from simulations.data.ragged import Ragged
from simulations.data.samples import Samples
from simulations.data.splits import Decision
from simulations.runs import cuts, recipes
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import (
    Pictured,
    fingerprint,
    images,
    look,
    named,
    opened,
    partitioned,
    pictured,
    silent,
    tested_as,
)
from simulations.runs.files import writing
from simulations.runs.halves import halves
from simulations.runs.setup import Setup, prepare
from strategies.server.participants import RollCall, roll_call
from strategies.server.threads import ServerThreads

FOLDER = "dataset-path"
"""Key of a node config: where the node's images are."""


def are_asked(e: Experiment) -> bool:
    """Tell whether the images of an experiment are those of real nodes."""
    return isinstance(e.parts.dataset, Nodes)


def prepared(grid: Grid, e: Experiment) -> tuple[Setup, Grid]:
    """Prepare an experiment for its server; real nodes are asked what they hold: :func:`meet`."""
    return meet(grid, e) if are_asked(e) else (prepare(e), grid)


@dataclass
class Met:
    """A grid whose nodes have said what they hold, so that they are not asked again."""

    grid: Grid
    call: RollCall

    def describe(self, with_labels: bool) -> RollCall:
        """Return what nodes have said."""
        return self.call

    def __getattr__(self, name: str) -> Any:
        """Be the grid in all else."""
        return getattr(self.grid, name)


def meet(grid: Grid, e: Experiment) -> tuple[Setup, Grid]:
    """Build what the server needs, and ask all nodes what they hold.

    Returns
    -------
    setup : Setup
        Its `train` has the labels that nodes say they hold, and no pixels.
    grid : Grid
        To train on.

    Raises
    ------
    ValueError
        As of :func:`~simulations.runs.setup.prepare`, or a key that real nodes cannot follow.
    NoClientsLeft, TrainingFailed
        A node is missing, or cannot take part; the message names it and says why.
    """
    check(e)
    setup, terms, looked = _server_side(e)
    strategy, threads = e.parts.strategy, ServerThreads(1)
    sees_labels = strategy.needs_labels or (strategy.sends_smashed_data and not e.end)
    try:
        call = roll_call(grid, e.clients, e.timeout, threads, sees_labels, terms.to_bytes())
    finally:
        threads.close()
    labels, partitions = _told(call, e.clients)
    recipes.check_run(e, partitions)
    shape = len(labels), *setup.train.pixels.shape[1:]
    pixels = np.broadcast_to(np.zeros(1, terms.transform.dtype), shape)
    names = terms.class_names
    halves_of = setup.head, setup.tail, setup.shallower
    needed = cuts.client_bytes_of(e, *halves_of, partitions.sizes)
    setup = replace(
        setup,
        client_bytes=int(needed.max()),
        train=replace(setup.train, pixels=pixels, labels=labels, partitions=partitions),
        unheld=unheld(partitions, labels, names) if sees_labels else Unheld(0, []),
        fingerprint=fingerprint(looked, partitions),
        classes=_counted(labels if sees_labels else None, looked),
        knows_labels=sees_labels,
    )
    return setup, cast(Grid, Met(grid, call))


def _server_side(e: Experiment) -> tuple[Setup, Terms, Surveyed]:
    """Prepare all but what nodes hold; return it, what they are told, and the images to test on."""
    with named("dataset"):
        looked = look(e, silent)
    seen = pictured(e, looked)
    model, head, tail, places, notes = halves(e, seen)
    shape, wanted = head.image_shape, e.parts.model.preprocessing()
    with named("dataset"):
        none, test, decisions = images(looked, e, shape, wanted, silent)
        tested = tested_as(looked, e, shape, wanted)
        wishes = Wishes(e.resize, e.test_resize, e.channels)
        transform, *_ = decide(looked, wishes, shape[1], shape[0], wanted)
    classes, source = len(seen.class_names), looked.source
    scale = list(wanted.mean), list(wanted.std)
    setup = Setup(
        experiment=e,
        model=model,
        head=head,
        tail=tail,
        train=Samples(none, source.train_labels, [], classes, *scale),
        test=Samples(test, source.test_labels, [], classes, *scale),
        shards={},
        unheld=Unheld(0, []),
        class_names=seen.class_names,
        model_notes=notes,
        decisions=[*decisions, *(Decision("model", note) for note in notes)],
        shallower=places,
        preprocessing=tested,
    )
    return setup, Terms(seen.class_names, seen.image_size, seen.channels, transform), looked


def check(e: Experiment) -> None:
    """Raise ValueError if a key asks for what the images of real nodes cannot give."""
    recipes.check_device(e)
    strategy = e.parts.strategy
    link, system = e.parts.link(), e.parts.system
    if not (link.channel.is_perfect and link.down_channel.is_perfect):
        raise ValueError(
            "channel: a real network carries what nodes send; leave channel and down_channel out"
        )
    if strategy.sends_smashed_data and link.codec.remembers:
        raise ValueError(
            f"codec: {e.codec} needs every payload to arrive, and a node may come too late; take "
            "another one, as uniform(bits=8)"
        )
    if system and system.decides:
        raise ValueError(
            f"system: {system.decides} would leave out real nodes by virtual time; leave it out"
        )
    if strategy.trains_on_server:
        raise ValueError(
            f"strategy: {e.strategy} needs all images on the server; nodes keep theirs"
        )
    if e.skew != "none()":
        raise ValueError("skew: images of real nodes are taken as they are; leave skew out")
    if e.holdout:
        raise ValueError("holdout: the server cannot test on images of nodes; leave holdout out")
    if e.on_bad_image != "error":
        raise ValueError("on_bad_image: a node with a bad image is refused; remove the image")


def _told(call: RollCall, clients: int) -> tuple[NDArray[np.int64], Ragged]:
    """Return labels (n,) in the order of clients and classes, 0 if unknown, and whose they are."""
    sizes = np.array([call.samples[client] for client in range(clients)], dtype=np.int64)
    labels = np.zeros(sizes.sum(), dtype=np.int64)
    if call.labels:
        counts = np.array([call.labels[client] for client in range(clients)], dtype=np.int64)
        labels = np.concatenate([np.repeat(np.arange(counts.shape[1]), row) for row in counts])
    return labels, Ragged(np.arange(len(labels)), sizes)


def _counted(
    labels: NDArray[np.int64] | None, looked: Surveyed
) -> list[tuple[str, int | None, int]]:
    """Name the classes, with images that nodes hold, if known, and images to test on."""
    names, tested = looked.source.class_names, looked.source.test_labels
    held: list[int | None] = [None] * len(names)
    if labels is not None:
        held = np.bincount(labels, minlength=len(names)).tolist()
    return list(zip(names, held, np.bincount(tested, minlength=len(names)).tolist(), strict=True))


def node_worker(e: Experiment, terms: Terms, client: int, folder: str) -> Worker:
    """Return what a process of a node needs to answer for its client, of its own images alone.

    Parameters
    ----------
    e, terms : Experiment, Terms
        What the server has told.
    client : int
        The partition id of the node.
    folder : str
        Where its images are.

    Raises
    ------
    DataError
        The images cannot be used.
    """
    if not 0 <= client < e.clients:
        raise DataError(f"the run has {e.clients} clients, numbered from 0")
    if not folder:
        raise DataError(f"its node config has no {FOLDER}")
    found = read_folder(folder)
    labels = found.labels(terms.class_names)
    classes = len(terms.class_names)
    model, head, tail, places, _ = halves(
        e, Pictured(terms.image_size, terms.channels, terms.class_names)
    )
    wanted = e.parts.model.preprocessing()
    scale = list(wanted.mean), list(wanted.std)
    sizes = np.zeros(e.clients, dtype=np.int64)
    sizes[client] = len(labels)
    own = Ragged(np.arange(len(labels)), sizes)
    pixels = FolderImages(found.paths, terms.transform)
    none = Samples(FolderImages([], terms.transform), labels[:0], [], classes, *scale)
    setup = Setup(
        experiment=e,
        model=model,
        head=head,
        tail=tail,
        train=Samples(pixels, labels, own, classes, *scale),
        test=none,
        shards={},
        unheld=Unheld(0, []),
        class_names=terms.class_names,
        shallower=places,
    )
    return setup.worker(stack=1)


def write_for_nodes(e: Experiment, folder: Path) -> str:
    """Write each client's images into a folder; return the data set of real nodes that have them.

    Raises
    ------
    ValueError
        Data or a partition that do not work, or the images cannot be written as files.
    """
    if e.skew != "none()":
        raise ValueError("skew: it is applied to images in memory; leave skew out")
    if e.holdout:
        raise ValueError("holdout: nodes hold no images back, so these would be lost; leave it out")
    source = opened(e)
    with writing(folder):
        write_folders(source, partitioned(source, e)[0], folder)
    return spec_of(source, folder)
