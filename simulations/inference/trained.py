"""A finished run, ready to answer: its data, and both halves with the weights it has trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fl_split.codecs import Codec
from fl_split.exits import Exits, exits_of
from fl_split.models.cut import Head, Tail
from fl_split.models.freezing import freeze
from fl_split.models.sparse_linear import sparsify
from fl_split.seeds import seeded
from simulations.data.samples import Samples
from simulations.runs import private_exits
from simulations.runs.checkpoint import read_experiment
from simulations.runs.experiment import Experiment
from simulations.runs.files import read_summary
from simulations.runs.results import SUMMARY
from simulations.runs.saved_model import load_halves
from simulations.runs.setup import Setup, prepare


@dataclass(frozen=True)
class Trained:
    """Head and tail of a run, on the CPU and in evaluation mode.

    Attributes
    ----------
    module : nn.Module
        The whole model, that both halves are of.
    exits_of_clients : dict
        Exits of each client that keeps its own; one that is missing has those of the head.
    """

    folder: Path
    setup: Setup
    module: Any
    head: Head
    tail: Tail
    exits_of_clients: Mapping[int, Exits] = field(default_factory=dict)

    @property
    def experiment(self) -> Experiment:
        """The settings of the run."""
        return self.setup.experiment

    @property
    def exits(self) -> Exits | None:
        """Exits of the head, if it has some."""
        return exits_of(self.head)

    @property
    def exits_behind(self) -> Exits | None:
        """Exits of the tail, if it has some."""
        return exits_of(self.tail)

    @property
    def without_exits(self) -> Trained:
        """The same without what is beside both halves, of the same weights."""
        head, tail = copy.copy(self.head), copy.copy(self.tail)
        for half in (head, tail):
            half._modules = {**half._modules, "beside": nn.ModuleList()}
        return replace(self, head=head, tail=tail, exits_of_clients={})

    @property
    def test(self) -> Samples:
        """Test images."""
        return self.setup.test

    @property
    def held_out(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the training images that clients have kept back, and whose they are.

        Raises
        ------
        ValueError
            There are none.
        """
        shards = self.setup.shards
        if not shards:
            raise ValueError(
                f"{str(self.folder)!r} has kept no rows back, and nothing may be fitted to test "
                "images; train with a holdout, as holdout=0.1"
            )
        clients = sorted(shards)
        owners = np.repeat(clients, [len(shards[client]) for client in clients])
        return np.concatenate([shards[client] for client in clients]), owners


def load(
    folder: Path, objects: Mapping[str, Any] | None = None, rate: float | None = None
) -> Trained:
    """Read the finished run in `folder`; `objects` are parts that stood in the place of specs.

    `rate` is the share of patches that go on, instead of the run's own.

    Raises
    ------
    ValueError
        There is no finished run, or its data are not there; or a model cut twice, or of which
        each client keeps its own.
    """
    experiment = read_experiment(folder, objects or {})
    summary = read_summary(folder / SUMMARY)
    if not summary:
        raise ValueError(f"{str(folder)!r} has no {SUMMARY}: the run has not ended")
    if experiment.end:
        raise ValueError("a model cut twice keeps its classifier on the device; train with end=0")
    if experiment.parts.strategy.keeps_models:
        raise ValueError(
            f"{experiment.strategy} leaves models with the clients, and the server has no copy to "
            "go on with; take a strategy that averages heads"
        )
    setup = prepare(experiment)
    module, head, tail = load_halves(folder, experiment, summary["model_input"])
    freeze(module, experiment.freeze)  # frozen layers have stayed dense
    sparsify(head, experiment.parts.sparsity, is_trained=True)
    if head.selector is not None:
        head = head.with_rate(head.selector.rate if rate is None else rate)
    elif rate is not None:
        raise ValueError("rate: the run selects no tokens; train with some, as tokens=dual_gate()")
    own = private_exits.read(folder, exits_of(head))
    return Trained(folder, setup, module, head.eval(), tail.eval(), own)


def with_codec(trained: Trained, codec: Codec) -> Trained:
    """Return it with another codec, which has the weights of the run's own if that is trained.

    Raises
    ------
    ValueError
        The run's weights are not those of the other codec.
    """
    width = trained.head.smashed_shape[1]
    with seeded(0, "codec modules"):  # of which only the shapes matter
        own, other = (one.modules(width) for one in (trained.experiment.parts.codec, codec))
    if own is None and other is None:
        return trained
    if own is None or other is None or _shapes(own) != _shapes(other):
        raise ValueError(
            f"codec: {codec!r} has other weights than that of the run, of which one is trained; "
            "leave codec out, or change only what its weights do not depend on"
        )
    head, tail = copy.copy(trained.head), copy.copy(trained.tail)
    for half, name, module in ((head, "encoder", other[0]), (tail, "decoder", other[1])):
        module.load_state_dict(half.get_submodule(name).state_dict())
        half._modules = {**half._modules, name: module.eval()}
    return replace(trained, head=head, tail=tail)


def _shapes(modules: tuple[nn.Module, nn.Module]) -> list[dict[str, tuple[int, ...]]]:
    return [{name: tuple(w.shape) for name, w in one.state_dict().items()} for one in modules]
