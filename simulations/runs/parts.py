"""Spec strings of an experiment: which table each key names an entry of, and what they describe."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch

from fl_split.accelerators import CPU
from fl_split.channels import CHANNELS, Channel
from fl_split.codecs import CODECS, Codec, parse_codec, parse_downlink
from fl_split.exchange.account import UPWARD, Way
from fl_split.exchange.link import Link
from fl_split.exits import EXITS, Exiting
from fl_split.experts import EXPERTS, Gating
from fl_split.models import MODELS, Model
from fl_split.models.sparsity import SPARSITIES, Sparsity
from fl_split.optimizers import OPTIMIZERS, Optimizer
from fl_split.recipe.clipping import CLIPS, Clip
from fl_split.recipe.phases import PHASES, Phases, parse_phases
from fl_split.recipe.schedules import SCHEDULES, Schedule
from fl_split.seeds import StepId
from fl_split.specs import canonical, parse, stages
from fl_split.tables import Table
from fl_split.tokens import TOKENS, Selection
from simulations.data import partition
from simulations.data.augmentation import AUGMENTATIONS, Augmentation, parse_augment
from simulations.data.descriptions import DATASETS, Dataset
from simulations.data.partitioners import PARTITIONS
from simulations.data.skew import SKEWS, Skew, parse_skew
from simulations.engines import ENGINES
from simulations.engines.local_grid import Engine
from simulations.runs.budget import BUDGETS, Budget, parse_budget
from simulations.runs.tracking import TRACKING, Tracking
from simulations.system.networks import Cell
from simulations.system.part import Numbers
from simulations.system.system import SYSTEM, System, parse_system
from strategies import STRATEGIES, Strategy
from strategies.server.aggregation import AGGREGATIONS, Aggregator

TABLES: dict[str, Table[Any]] = {
    "aggregation": AGGREGATIONS,
    "augment": AUGMENTATIONS,
    "budget": BUDGETS,
    "channel": CHANNELS,
    "clip": CLIPS,
    "codec": CODECS,
    "dataset": DATASETS,
    "down_channel": CHANNELS,
    "downlink": CODECS,
    "engine": ENGINES,
    "exits": EXITS,
    "experts": EXPERTS,
    "head_optimizer": OPTIMIZERS,
    "model": MODELS,
    "phases": PHASES,
    "schedule": SCHEDULES,
    "skew": SKEWS,
    "sparsity": SPARSITIES,
    "strategy": STRATEGIES,
    "system": SYSTEM,
    "tail_optimizer": OPTIMIZERS,
    "tokens": TOKENS,
    "tracking": TRACKING,
}
"""Keys whose value is a spec string, and the table it names an entry of."""

SPEC_TABLES: Mapping[str, Table[Any]] = {**TABLES, "partition": PARTITIONS}
"""The same with `partition`, whose entries need what the experiment fills in."""

CHAINS: dict[str, Callable[[str], Any]] = {
    "augment": parse_augment,
    "budget": parse_budget,
    "codec": parse_codec,
    "downlink": parse_downlink,
    "phases": parse_phases,
    "skew": parse_skew,
    "system": parse_system,
}
"""Keys whose value may be a chain, ``a(...) | b(...)``, and what builds it."""


@dataclass(frozen=True)
class _Noise:
    """Signal-to-noise ratio of each message in a cell."""

    cell: Cell
    clients: int

    def __call__(self, way: Way, at: StepId) -> float:
        up, down = _snrs_db(self.cell, self.clients, at.round, at.seed)
        return float((up if way in UPWARD else down)[at.client])


@lru_cache(maxsize=2)
def _snrs_db(cell: Cell, clients: int, number: int, seed: int) -> tuple[Numbers, Numbers]:
    """Draw a round once for all its messages."""
    return cell.snrs_db(clients, number, seed)


@dataclass(frozen=True)
class Parts:
    """What an experiment's spec strings describe, by key.

    Attributes
    ----------
    aggregation : Callable
        Makes an aggregator, which remembers earlier rounds of one run.
    """

    codec: Codec
    downlink: Codec
    channel: Channel
    down_channel: Channel
    strategy: Strategy
    aggregation: Callable[[], Aggregator]
    model: Model
    exits: Exiting
    experts: Gating
    head_optimizer: Optimizer
    tail_optimizer: Optimizer
    schedule: Schedule
    clip: Clip
    phases: Phases
    sparsity: Sparsity
    augment: Sequence[Augmentation]
    dataset: Dataset
    skew: Sequence[Skew]
    budget: Budget
    engine: Engine
    tokens: Selection
    tracking: Tracking
    system: System | None
    clients: int

    def link(self, device: torch.device = CPU) -> Link:
        """Return the road between clients and server; what is received is put on `device`."""
        roads = self.codec, self.downlink, self.channel, self.down_channel
        return Link(*roads, self.snr_db, device)

    @property
    def snr_db(self) -> Callable[[Way, StepId], float] | None:
        """Says how much noise there is in the cell of the system, if it has one."""
        network = self.system.network if self.system else None
        return _Noise(network, self.clients) if isinstance(network, Cell) else None


def build(specs: Mapping[str, str], clients: int, image_size: int = 0) -> Parts:
    """Build what spec strings describe, by key; SpecError if one cannot be.

    `image_size`, if it is not 0, is handed to a model that takes one and was given none.
    """
    model = parse(specs["model"], MODELS)
    if image_size and is_dataclass(model) and getattr(model, "image_size", None) == 0:
        model = replace(model, image_size=image_size)
    return Parts(
        codec=parse_codec(specs["codec"]),
        downlink=parse_downlink(specs["downlink"]),
        channel=parse(specs["channel"], CHANNELS),
        down_channel=parse(specs["down_channel"], CHANNELS),
        strategy=parse(specs["strategy"], STRATEGIES),
        aggregation=partial(_fresh, specs["aggregation"]),
        model=model,
        exits=parse(specs["exits"], EXITS),
        experts=parse(specs["experts"], EXPERTS),
        head_optimizer=parse(specs["head_optimizer"], OPTIMIZERS),
        tail_optimizer=parse(specs["tail_optimizer"], OPTIMIZERS),
        schedule=parse(specs["schedule"], SCHEDULES),
        clip=parse(specs["clip"], CLIPS),
        phases=parse_phases(specs["phases"]),
        sparsity=parse(specs["sparsity"], SPARSITIES),
        augment=parse_augment(specs["augment"]),
        dataset=parse(specs["dataset"], DATASETS),
        skew=parse_skew(specs["skew"]),
        budget=parse_budget(specs["budget"]),
        engine=parse(specs["engine"], ENGINES),
        tokens=parse(specs["tokens"], TOKENS),
        tracking=parse(specs["tracking"], TRACKING),
        system=parse_system(specs["system"]),
        clients=clients,
    )


def spelt_out(key: str, spec: str) -> str:
    """Check a spec string, and spell it out with all defaults."""
    if key == "partition":
        return partition.resolved(spec)
    table, build = TABLES[key], CHAINS.get(key)
    if build is None:
        parse(spec, table)
        return canonical(spec, table)
    build(spec)
    return " | ".join(canonical(stage, table) for stage in stages(spec))


def _fresh(aggregation: str) -> Aggregator:
    """Return an aggregator that remembers nothing, even where an object was given."""
    return copy.deepcopy(parse(aggregation, AGGREGATIONS))
