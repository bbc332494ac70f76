"""Which cut suits which kind of device: by the clock, from rehearsals of a round.

The question of AdaptSFL (Lin et al., 2024, arXiv 2403.13101) and HASFL (2025, arXiv 2506.08426),
answered by trying all: of both papers but the abstracts were read. Each cut is rehearsed for a few
steps, by all clients of a round. What a client computes and sends depends on its own cut alone, so
that the clock then times any mixture. A round of more steps than are rehearsed ends, for each
client, later by as much as each rehearsed step took; accuracy has no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np

from simulations.data.ragged import Ragged
from simulations.runs.cuts import client_bytes_of
from simulations.runs.experiment import Experiment
from simulations.runs.setup import Setup, prepare
from simulations.studies.rehearsals import Rehearsals
from simulations.system.clock import Conditions, time_round
from simulations.system.devices import Device, Fleet
from simulations.system.graph import Graph
from simulations.system.part import Numbers
from simulations.system.quantities import told
from simulations.system.spending import spent
from simulations.system.system import System, Timed
from strategies.server.strategy import Strategy

MOST = 5_000
"""Mixtures that are tried."""

STEPS = 4
"""Steps of a round that are rehearsed at most, by default."""


class OfDevice(NamedTuple):
    """What a client with one kind of device takes at one cut, mean over those clients.

    `memory` are bytes; `seconds` and `joules` those of its own work in a round: computing, sending
    and receiving, without waiting.
    """

    device: Device
    clients: int
    cut: int
    memory: int
    fits: bool
    seconds: float
    joules: float


class Mixture(NamedTuple):
    """A cut for each kind of device, by name, and the virtual seconds of a round."""

    cuts: dict[str, int]
    seconds: float

    @property
    def key(self) -> str:
        """Return the value of the key `cut`."""
        return f"by_device({', '.join(f'{name}={cut}' for name, cut in self.cuts.items())})"


@dataclass(frozen=True)
class Choice:
    """What was found.

    Attributes
    ----------
    table : list of OfDevice
        Every kind of device at every cut.
    singles : dict
        Seconds of a round by the one cut of all clients; without cuts for which a device has too
        little memory.
    mixture : Mixture
        The best of all.
    tried, steps : int
        Mixtures that were timed; steps of a round.
    """

    table: list[OfDevice]
    singles: dict[int, float]
    mixture: Mixture
    tried: int
    steps: int

    @property
    def single(self) -> tuple[int, float] | None:
        """The best cut for all, and its seconds; None if none suits all devices."""
        return min(self.singles.items(), key=lambda one: (one[1], one[0]), default=None)


def choose(
    e: Experiment, system: System, cuts: Sequence[int] = (), most_steps: int = STEPS
) -> Choice:
    """Return which cut suits which device of `system`, of `cuts` or of all that there are.

    A round of more than `most_steps`, at least 2, is foretold from so many and half as many.

    Raises
    ------
    ValueError
        A strategy that takes one cut for all, devices with too little memory for any cut, or more
        mixtures than can be tried.
    """
    strategy = e.parts.strategy
    check(strategy, e.strategy)
    plain = e.model_copy(update={"system": "none()", "cut": 1})
    places = _cuts(prepare(plain), cuts)
    setup = prepare(plain.model_copy(update={"cut": places[-1]}))
    return Chooser(setup, system, places, most_steps).choose()


def check(strategy: Strategy, name: str) -> None:
    """Raise ValueError for a strategy whose clients cannot be cut at several places."""
    if not strategy.mixes_cuts or not strategy.sends_smashed_data:
        raise ValueError(
            f"{name} takes one cut for all clients; take sflv1 or parallel, for example"
        )
    if strategy.needs_clock:
        raise ValueError(f"{name} trains by virtual time, which differs by the cuts; take another")


def _cuts(setup: Setup, asked: Sequence[int]) -> list[int]:
    """Return the cuts that are compared, the shallowest first."""
    last = setup.head.num_stages + setup.tail.num_stages - 1
    possible = range(1, last + 1)
    for cut in asked:
        if cut not in possible:
            raise ValueError(f"cuts must be in 1..{last}, got {cut}")
    return sorted({*asked}) or [*possible]


@dataclass(frozen=True)
class Chooser:
    """Times mixtures of cuts under a system; `setup` is cut at the last of `cuts`."""

    setup: Setup
    system: System
    cuts: Sequence[int]
    most_steps: int = STEPS

    @cached_property
    def rehearsals(self) -> list[Rehearsals]:
        """Rounds at each cut: a whole one, or two shorter ones."""
        most = self.most_steps
        steps = [self.steps] if self.steps <= most else [most // 2, most]
        return [Rehearsals(self.setup, self.cuts, count) for count in steps]

    @cached_property
    def run(self) -> Timed:
        """What the clock must know of the run."""
        return Timed.of(self.setup.experiment.model_dump())

    @cached_property
    def fleet(self) -> Fleet:
        """The device of each client."""
        return self.system.fleet(self.run.clients, self.run.seed)

    @cached_property
    def devices(self) -> list[int]:
        """Kinds of devices that clients have, as places in the fleet."""
        found: list[int] = np.unique(self.fleet.kinds).tolist()
        return found

    @cached_property
    def memory(self) -> list[int]:
        """Bytes that a client needs, by cut."""
        e, setup = self.setup.experiment, self.setup
        heads = [setup.parts.model.split(setup.model, cut, e.end)[0] for cut in self.cuts]
        sizes = Ragged.of(setup.train.partitions).sizes
        needed = [client_bytes_of(e, head, setup.tail, {}, sizes) for head in heads]
        return [int(one.max()) for one in needed]

    @cached_property
    def steps(self) -> int:
        """Steps of a round of the client that has the most."""
        chosen = self.setup.parts.strategy.choose(self.setup.population(), 1)
        samples, steps = self.setup.population().samples, self.setup.num_steps
        return max(steps(samples[k], one) for k, one in chosen.items())

    def fits(self, kind: int, place: int) -> bool:
        """Tell whether a kind of device has the memory for a cut."""
        return self.memory[place] <= self.fleet.devices[kind].memory

    def seconds(self, places: Sequence[int]) -> float:
        """Return the virtual seconds of a round, given the cut of each kind of device."""
        ends = []
        for rehearsal in self.rehearsals:
            graph = self._graph(rehearsal, places)
            times, mine = time_round(graph, self._conditions), ~graph.on_server
            if rehearsal.steps == self.steps:
                return times.seconds
            last = np.zeros(self.run.clients)
            np.maximum.at(last, graph.clients[mine], times.end[mine])
            ends.append(last)
        return float(self._of_round(ends).max())

    def choose(self) -> Choice:
        """Time all mixtures that fit into memory."""
        possible = [
            [place for place in range(len(self.cuts)) if self.fits(kind, place)]
            for kind in self.devices
        ]
        for kind, places in zip(self.devices, possible, strict=True):
            if not places:
                device = self.fleet.devices[kind]
                raise ValueError(
                    f"{device.name} has {told(device.memory, 'B')} of memory, and the earliest cut "
                    f"needs {told(self.memory[0], 'B')}; take a smaller batch_size or model"
                )
        if (count := math.prod(map(len, possible))) > MOST:
            raise ValueError(f"{count:,} mixtures are too many to be tried; name a few cuts")
        timed = {places: self.seconds(places) for places in product(*possible)}
        best = min(timed, key=lambda places: (timed[places], places))
        names = [self.fleet.devices[kind].name for kind in self.devices]
        cuts = {name: self.cuts[place] for name, place in zip(names, best, strict=True)}
        singles = {
            self.cuts[places[0]]: seconds
            for places, seconds in timed.items()
            if len({*places}) == 1
        }
        return Choice(self._table(), singles, Mixture(cuts, timed[best]), count, self.steps)

    def _table(self) -> list[OfDevice]:
        """Return what each kind of device takes at each cut."""
        found = []
        for place, cut in enumerate(self.cuts):
            places = [place] * len(self.devices)
            rounds = [
                spent(self._graph(one, places), self._conditions, self.fleet)
                for one in self.rehearsals
            ]
            busy = [np.array([one.compute, one.send, one.receive]) for one in rounds]
            work = self._of_round(busy)
            for kind in self.devices:
                device, mine = self.fleet.devices[kind], self.fleet.kinds[rounds[0].clients] == kind
                each = work[:, mine].mean(axis=1) if mine.any() else np.full(3, math.nan)
                watts = [device.compute_watts, device.send_watts, device.receive_watts]
                found.append(
                    OfDevice(
                        device,
                        int((self.fleet.kinds == kind).sum()),
                        cut,
                        self.memory[place],
                        self.fits(kind, place),
                        float(each.sum()),
                        float(each @ watts),
                    )
                )
        return found

    def _graph(self, rehearsal: Rehearsals, places: Sequence[int]) -> Graph:
        """Return the graph of a rehearsed round with such cuts of kinds of devices."""
        by_kind = np.zeros(len(self.fleet.devices), dtype=np.int64)
        by_kind[self.devices] = places
        return rehearsal.mixed(by_kind[self.fleet.kinds])

    @cached_property
    def _conditions(self) -> Conditions:
        return self.system.in_round(self.run, 1, 0.0)[1]

    def _of_round(self, rehearsed: Sequence[Numbers]) -> Numbers:
        """Return what a whole round takes, of what shorter ones take."""
        if len(rehearsed) == 1:
            return rehearsed[0]
        few, many = (one.steps for one in self.rehearsals)
        more = (self.steps - few) / (many - few)
        return rehearsed[0] + more * (rehearsed[1] - rehearsed[0])
