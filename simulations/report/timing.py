"""Finished runs under systems that they did not run on: seconds and joules to an accuracy.

Most results do not depend on time, so that task graphs tell what a run would have taken anywhere;
:func:`notes` names those that do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from fl_split.specs import parse
from simulations.report.finished import FinishedRun
from simulations.report.runs import RunCollection, collect
from simulations.runs.task_files import FOLDER
from simulations.runs.virtual_time import timed
from simulations.system.coding import coding
from simulations.system.devices import check_memory
from simulations.system.spending import SHARES, Share, Spent
from simulations.system.system import System, Timed, parse_system
from strategies import STRATEGIES
from strategies.server.tasks import SERVER

PARTY = "compute", "send", "receive", "wait"
"""Seconds of a client, by what it did."""

OF_BEST = (0.5, 0.7, 0.8, 0.9)
"""Shares of the best accuracy of all runs that times are given to."""


@dataclass(frozen=True)
class TimedRun:
    """One run under one system, round by round.

    Attributes
    ----------
    label, system : str
        Of the configuration; the spec.
    model : System
        What the spec describes.
    spent : sequence of Spent
        What each round took.
    """

    label: str
    system: str
    model: System
    run: FinishedRun
    spent: Sequence[Spent]

    @property
    def accuracy(self) -> np.ndarray:
        """(rounds,) after each round."""
        return np.asarray(self.run.rounds["accuracy"].to_numpy(dtype=float))

    @cached_property
    def seconds(self) -> np.ndarray:
        """(rounds,) virtual seconds until each round had ended."""
        return np.cumsum([one.seconds for one in self.spent])

    @cached_property
    def joules(self) -> np.ndarray:
        """(rounds,) of all clients together, until each round had ended."""
        return np.cumsum([one.joules.sum() for one in self.spent])

    def until(self, accuracy: float, spent: np.ndarray) -> float:
        """Return what was spent when an accuracy was reached first; nan if it never was."""
        reached = np.flatnonzero(self.accuracy >= accuracy)
        return float(spent[reached[0]]) if len(reached) else math.nan

    def share(self, name: Share) -> float:
        """Return the share of the virtual time that the critical path spent on something."""
        whole = float(self.seconds[-1])
        return sum(one.shares[name] for one in self.spent) / whole if whole else 0.0

    @property
    def name(self) -> str:
        """The folder of the run, from the one that was asked for."""
        return self.run.name

    def of_clients(self) -> pd.DataFrame:
        """Return what each client that took part spent over the run, by client."""
        parts = [
            pd.DataFrame({key: getattr(one, key) for key in ("clients", *PARTY, "joules")})
            for one in self.spent
        ]
        return pd.concat(parts).groupby("clients").sum()

    @property
    def waiting(self) -> float:
        """Share of their time in rounds that clients waited, for the server or for each other."""
        waited = sum(float((one.wait + one.idle).sum()) for one in self.spent)
        whole = sum(one.seconds * len(one.clients) for one in self.spent)
        return waited / whole if whole else 0.0

    @property
    def server_use(self) -> float:
        """Share of the virtual time that a core of the server was busy."""
        whole = self.seconds[-1] * self.model.server.cores
        return sum(one.server_busy for one in self.spent) / whole if whole else 0.0

    @property
    def slowest(self) -> str:
        """Name the party that the critical path led through for the longest."""
        parties = [one.slowest for one in self.spent]
        most = max(sorted(set(parties)), key=parties.count, default=SERVER)
        return "server" if most == SERVER else f"client {most}"


def time_runs(folders: Sequence[Path], systems: Sequence[str]) -> list[TimedRun]:
    """Time all complete runs in and below folders under each system.

    Raises
    ------
    ValueError
        No run is complete, or one has no task graphs, or a spec is none of a system.
    """
    parsed = {spec: system_of(spec) for spec in systems}
    collection = collect(folders)
    for run in collection.runs:
        check_graphs(run)
    return [*_timed(collection, parsed)]


def system_of(spec: str) -> System:
    """Return the system of a spec; ValueError if it is none, or one that decides who is trained."""
    system = parse_system(spec)
    if system is None:
        raise ValueError(f"{spec!r} is no system; give one, as \"devices('pi5') | lte()\"")
    if system.decides:
        raise ValueError(
            f"{spec!r}: {system.decides} decides who is trained, and these runs are finished; "
            "leave it out, or give it to a run as its system"
        )
    return system


def check_graphs(run: FinishedRun) -> None:
    """Raise ValueError if a run has no task graphs."""
    if not (run.folder / FOLDER).is_dir():
        version = run.summary.get("versions", {}).get("fl-split", "unknown")
        raise ValueError(
            f"{run.name} has no {FOLDER}: fl-split {version} made it, and recorded none; "
            "run it again to time it. Bytes and operations of its rounds are in rounds.csv"
        )


def _timed(collection: RunCollection, systems: Mapping[str, System]) -> Iterator[TimedRun]:
    for configuration in collection.configurations:
        for run in configuration.runs:
            for spec, system in systems.items():
                spent = spent_under(run, spec, system)
                yield TimedRun(configuration.label, spec, system, run, spent)


def spent_under(run: FinishedRun, spec: str, system: System) -> list[Spent]:
    """Return what each round of a run takes under a system; ValueError if a client is too small."""
    keys = Timed.of(run.settings)
    try:
        check_memory(system.fleet(keys.clients, keys.seed), int(run.summary.get("client_bytes", 0)))
    except ValueError as error:
        raise ValueError(f"{run.name} under {spec!r}: {error}") from None
    return [*timed(run.folder, len(run.rounds), keys, system)]


def table(runs: Sequence[TimedRun], accuracies: Sequence[float] = ()) -> pd.DataFrame:
    """Return a row for each configuration and system; numbers are means over seeds.

    Columns: `run`, the folder, or of several seeds what these have in common; `system`, `seeds`,
    `rounds`; `accuracy`, the best; `seconds` and `joules` of the whole run, all clients together,
    nan without watts; `to_50` ... `to_90`, seconds to that share of the best accuracy of all
    runs, and `to_X` to each of `accuracies`, nan if a seed never reached it; `head`, `up`,
    `tail`, `down`, `weights`, `late`, shares of the critical path; `waiting`, share of clients'
    time; `server_use`; `slowest`.
    """
    best = max((float(one.accuracy.max()) for one in runs), default=0.0)
    targets = {f"to_{100 * share:g}": share * best for share in OF_BEST}
    targets |= {f"to_{accuracy:g}": accuracy for accuracy in accuracies}
    groups: dict[tuple[str, str], list[TimedRun]] = {}
    for one in runs:
        groups.setdefault((one.label, one.system), []).append(one)
    return pd.DataFrame([_row(group, targets) for group in groups.values()])


def notes(runs: Iterable[FinishedRun]) -> list[str]:
    """Return what the times of these runs leave out, a sentence each."""
    found = []
    for name, settings in {run.name: run.settings for run in runs}.items():
        specs = settings["codec"], settings["downlink"]
        unknown = sorted({codec for spec in specs for codec in coding(spec).unknown})
        if unknown:
            found.append(
                f"{name}: the table of costs has no {', '.join(unknown)}; it counts nothing"
            )
        own = parse_system(settings.get("system", "none"))
        strategy = parse(settings["strategy"], STRATEGIES)
        follows = strategy.needs_clock or strategy.follows_speeds
        if own and (own.decides or follows):
            found.append(
                f"{name}: its own system decided who was trained, or when "
                f"({own.decides or settings['strategy']}); other systems change its times alone"
            )
    return found


def by_device(runs: Sequence[TimedRun]) -> pd.DataFrame:
    """Return what a client spends by kind of device: a row for each run, system and kind.

    Columns: `run`, `system`, `device`; `clients` that have it, and `active`, those that took
    part; `joules`, a client's mean over the whole run, and `most_joules`; `compute`, `send`,
    `receive`, `wait`, mean seconds.
    """
    rows = []
    for one in runs:
        fleet = one.model.fleet(int(one.run.settings["clients"]), one.run.seed)
        spent = one.of_clients()
        kinds = fleet.kinds[spent.index.to_numpy()]
        for number, device in enumerate(fleet.devices):
            mine = spent[kinds == number]
            joules = mine["joules"] if device.has_watts else mine["joules"] * math.nan
            rows.append(
                {
                    "run": one.name,
                    "system": one.system,
                    "device": device.name,
                    "clients": int((fleet.kinds == number).sum()),
                    "active": len(mine),
                    "joules": joules.mean(),
                    "most_joules": joules.max(),
                    **mine[[*PARTY]].mean().to_dict(),
                }
            )
    return pd.DataFrame(rows)


def _row(group: list[TimedRun], targets: Mapping[str, float]) -> dict[str, object]:
    def mean(numbers: Iterator[float]) -> float:
        return float(np.mean([*numbers]))

    return {
        "run": group[0].label if len(group) > 1 else group[0].name,
        "system": group[0].system,
        "seeds": len(group),
        "rounds": mean(float(len(one.accuracy)) for one in group),
        "accuracy": mean(float(one.accuracy.max()) for one in group),
        "seconds": mean(float(one.seconds[-1]) for one in group),
        "joules": mean(float(one.joules[-1]) or math.nan for one in group),
        **{
            name: mean(one.until(accuracy, one.seconds) for one in group)
            for name, accuracy in targets.items()
        },
        **{name: mean(one.share(name) for one in group) for name in SHARES},
        "waiting": mean(one.waiting for one in group),
        "server_use": mean(one.server_use for one in group),
        "slowest": group[0].slowest,
    }
