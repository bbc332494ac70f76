"""Runs of folders of any depth, grouped where they differ only in their seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from simulations.report.finished import FinishedRun, find_runs, unique
from simulations.report.labels import TASK, joined, natural, ordered, part
from simulations.runs.checkpoint import FREE
from simulations.runs.columns import Metric, declared

LONG = 60
"""Characters of a label beyond which it names no more keys than it must."""

NAME = "name"
"""Stands among the keys that labels name, for the names of a comparison's runs."""

IGNORED = FREE | {"seed"}
"""Keys in which the runs of one configuration may differ."""


@dataclass(frozen=True)
class Configuration:
    """Runs that differ only in their seed.

    Attributes
    ----------
    differing : Mapping[str, str]
        Key to short text, for the keys in which the configurations of the report differ.
    told : tuple[str, ...]
        The keys that labels name: all of `differing`, or fewer if labels would become long.
    """

    differing: Mapping[str, str]
    told: tuple[str, ...]
    runs: tuple[FinishedRun, ...]

    @property
    def label(self) -> str:
        """Short text that no other configuration of the report has."""
        return joined(self.differing, self.told)

    @property
    def whole_label(self) -> str:
        """All keys in which this configuration differs from any other."""
        return joined(self.differing, self.differing)

    @property
    def task(self) -> str:
        """The part of the label that describes the task."""
        return joined(self.differing, [key for key in self.differing if key in TASK])

    @property
    def method(self) -> str:
        """The part of the label that describes the method."""
        keys = [key for key in self.told if key not in TASK]
        return joined(self.differing, keys) or self.label

    def values(self, key: str) -> list[float]:
        """Return a number of each run's summary."""
        return [run.total(key) for run in self.runs]

    def by_seed(self, key: str) -> dict[int, float]:
        """Return a number of each run's summary, by seed."""
        return {run.seed: run.total(key) for run in self.runs}


@dataclass(frozen=True)
class RunCollection:
    """All runs of a report, grouped; `common` are the keys in which none differs."""

    configurations: tuple[Configuration, ...]
    left_out: tuple[FinishedRun, ...]
    common: Mapping[str, Any]

    @cached_property
    def runs(self) -> list[FinishedRun]:
        """All runs that count."""
        return [run for one in self.configurations for run in one.runs]

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """All metrics that the runs declare, by name."""
        found: dict[str, Metric] = {}
        for run in self.runs:
            found |= declared(run.summary)
        return found

    @property
    def keys(self) -> list[str]:
        """Keys in which configurations differ."""
        return list(self.configurations[0].differing)

    def baselines(self, name: str | None) -> dict[str, Configuration]:
        """Choose whom to compare with, by task.

        Parameters
        ----------
        name : str, optional
            A label or one of its parts or, if none is just so, part of a label. If it fits
            several, they must be of different tasks, one for each; a single one serves all
            tasks. Without it, the first method, or in a task that lacks it the first there.

        Raises
        ------
        ValueError
            Nothing is called so, or it is not clear which is meant.
        """
        if name is None:
            return self._first_methods()
        exact = [
            one
            for one in self.configurations
            if name in {one.label, one.method, one.whole_label, *one.differing.values()}
        ]
        chosen = exact or [one for one in self.configurations if name in one.whole_label]
        if not chosen:
            known = _listed([one.label for one in self.configurations])
            raise ValueError(f"no configuration is called {name!r}; there are: {known}")
        found = {one.task: one for one in chosen}
        if len(found) < len(chosen):
            fitting = _listed([one.label for one in chosen])
            raise ValueError(f"{name!r} fits {len(chosen)} configurations: {fitting}; say more")
        if len(chosen) == 1:
            return {one.task: chosen[0] for one in self.configurations}
        return found

    def _first_methods(self) -> dict[str, Configuration]:
        first = self.configurations[0].method
        found: dict[str, Configuration] = {}
        for one in self.configurations:
            if one.task not in found or one.method == first:
                found[one.task] = one
        return found


def collect(
    folders: Iterable[Path], counted: Callable[[list[FinishedRun]], list[FinishedRun]] = list
) -> RunCollection:
    """Find all runs in and below `folders`, and group them; `counted` may take away flaws.

    Raises
    ------
    ValueError
        A folder is missing or holds no run, or no run is complete.
    """
    runs = counted(unique([run for folder in folders for run in find_runs(folder)]))
    whole = [run for run in runs if not run.flaw]
    if not whole:
        flaws = _listed([f"{run.name} ({run.flaw})" for run in runs])
        raise ValueError(f"no run is complete: {flaws}")
    keys = sorted({key for run in whole for key in run.settings} - IGNORED)
    differing = [key for key in keys if len({str(r.settings.get(key)) for r in whole}) > 1]
    groups: dict[str, list[FinishedRun]] = {}
    for run in whole:
        groups.setdefault(str([run.settings.get(key) for key in differing]), []).append(run)
    shown = ordered(differing) or ["strategy", "codec"]
    configurations = [_configuration(shown, group) for group in groups.values()]
    if len({one.label for one in configurations}) < len(configurations):
        configurations = [_configuration(shown, group, False) for group in groups.values()]
    configurations = _titled(configurations) or _told_of(configurations)
    configurations.sort(key=_rank)
    common = {key: whole[0].settings.get(key) for key in keys if key not in differing}
    left_out = tuple(run for run in runs if run.flaw)
    return RunCollection(tuple(configurations), left_out, common)


def _configuration(
    keys: list[str], runs: list[FinishedRun], is_short: bool = True
) -> Configuration:
    texts = {key: part(key, runs[0].settings.get(key), is_short) for key in keys}
    return Configuration(texts, tuple(keys), tuple(sorted(runs, key=lambda run: run.seed)))


def _titled(configurations: list[Configuration]) -> list[Configuration]:
    """Name all configurations as their comparison does; none if it does not tell them apart."""
    titles = [{run.title for run in one.runs} for one in configurations]
    names = [found.pop() if len(found) == 1 else "" for found in titles]
    if not all(names) or len({*names}) < len(names):
        return []
    return [
        replace(one, differing={NAME: name, **one.differing}, told=(NAME,))
        for name, one in zip(names, configurations, strict=True)
    ]


def _told_of(configurations: list[Configuration]) -> list[Configuration]:
    """Name configurations by the keys in which they differ."""
    told = _told(configurations)
    return [replace(one, told=told) for one in configurations]


def _told(configurations: list[Configuration]) -> tuple[str, ...]:
    """Choose the keys that labels name; long labels drop keys that distinguish no two runs."""
    told = configurations[0].told
    for key in [key for key in reversed(told) if key not in TASK]:
        labels = [joined(one.differing, told) for one in configurations]
        if max(map(len, labels)) <= LONG:
            break
        fewer = tuple(other for other in told if other != key)
        if fewer and len({joined(one.differing, fewer) for one in configurations}) == len(labels):
            told = fewer
    return told


def _rank(one: Configuration) -> list[tuple[bool, list[tuple[int, float, str]]]]:
    """Sort key: those of one task stand together."""
    keys = sorted(one.differing, key=lambda key: key not in TASK)  # stable
    keys = [key for key in keys if key != NAME]  # where names are, keys still give the order
    return [natural(one.differing[key]) for key in keys]


def _listed(texts: list[str]) -> str:
    shown = "; ".join(texts[:40])
    return shown + ("; ..." if len(texts) > 40 else "")
