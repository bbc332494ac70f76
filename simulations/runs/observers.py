"""Observers: what looks at a run after each round.

An observer measures (its numbers become columns of rounds.csv) or acts on the row (writes a
checkpoint, tracks, ends the run). The server app lists ours; :func:`simulations.runs.run.run`
takes more.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fl_split.codecs import Codec
from fl_split.exchange.account import Crossed, Traffic, ratio
from simulations.runs.budget import Budget
from simulations.runs.columns import COLUMNS, OF_CHANNEL, Metric
from simulations.runs.tracking import Log, NoLog
from strategies import RoundResult

Row = Mapping[str, Any]
Totals = Callable[[], Mapping[str, Any]]
"""Gives rounds done, and sums over them, of the columns that add up."""


APART = {"steps", "client_cpu_seconds"}
"""Numbers of each client that the columns of rounds.csv count under another name."""


class Observer:
    """Looks at a run after each round; all methods may be left out.

    Attributes
    ----------
    metrics : sequence of Metric
        Declares numbers that :meth:`measure` returns, where they add up or have a unit.
    """

    metrics: Sequence[Metric] = ()

    def measure(self, result: RoundResult) -> Mapping[str, float | int | None]:
        """Return numbers that describe the round."""
        return {}

    def of_clients(self, result: RoundResult) -> Mapping[int, Mapping[str, float]]:
        """Return numbers that describe clients in the round, by client."""
        return {}

    def after_round(self, result: RoundResult, row: Row) -> bool:
        """Act on a round whose row has been written; true ends the run."""
        return False


class Learning(Observer):
    """What training told of itself: its loss, and how far heads drifted apart."""

    def measure(self, result: RoundResult) -> Mapping[str, float | int | None]:
        """Return both."""
        return {"train_loss": result.train_loss, "drift": result.drift}


class Costs(Observer):
    """What it took: clients, samples, bytes, operations.

    Parameters
    ----------
    codec : Codec
        Says which share of a sample the ADC paper counts as sent.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def measure(self, result: RoundResult) -> Mapping[str, float | int | None]:
        """Sum over clients."""
        traffic = list(result.traffic.values())
        numbers = {
            k for k, v in vars((traffic or [Traffic()])[0]).items() if not isinstance(v, str)
        }
        total = {key: sum(getattr(one, key) for one in traffic) for key in sorted(numbers - APART)}
        steps = sum(one.steps for one in traffic)
        return {
            **total,
            "clients": sum(client >= 0 for client in result.traffic),
            "dropped": sum(bool(one.dropped) for one in traffic),
            "client_steps": steps,
            "ratio": payload_ratio(total),
            "nominal_samples": _nominal_samples(self.codec, total, steps),
            "client_flops": result.client_flops,
            "server_flops": result.server_flops,
        }


class Channels(Observer):
    """What the channels did, of each client and of all together."""

    metrics = OF_CHANNEL

    def measure(self, result: RoundResult) -> Mapping[str, int]:
        """Sum over clients."""
        found = self.of_clients(result).values()
        return {one.name: sum(numbers[one.name] for numbers in found) for one in OF_CHANNEL}

    def of_clients(self, result: RoundResult) -> Mapping[int, Mapping[str, int]]:
        """Return the numbers of each client."""
        nothing = Crossed()
        return {client: vars(result.crossed.get(client, nothing)) for client in result.traffic}


class Seconds(Observer):
    """What time it took on this machine.

    Parameters
    ----------
    clock : Callable, optional
        CPU seconds of the whole simulation so far. Without it (Flower's own runtime) CPU
        time is that of this process and what the clients report.
    """

    def __init__(self, clock: Callable[[], float] | None) -> None:
        self.clock, self.hears_clients = clock or time.process_time, clock is None
        self._cpu, self._wall = self.clock(), time.monotonic()

    def measure(self, result: RoundResult) -> Mapping[str, float | int | None]:
        """Return seconds since the last round."""
        cpu, wall = self.clock(), time.monotonic()
        told = sum(t.client_cpu_seconds for t in result.traffic.values())
        spent = cpu - self._cpu + (told if self.hears_clients else 0.0)
        found = {"wall_seconds": round(wall - self._wall, 3), "cpu_seconds": round(spent, 3)}
        self._cpu, self._wall = cpu, wall
        return found


class Tracker(Observer):
    """Hands rows to a log of another program."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def after_round(self, result: RoundResult, row: Row) -> bool:
        """Hand the row on; when that fails once, go on without."""
        try:
            self.log.add(dict(row))
        except Exception as error:  # of a library or a network; results are in the folder
            warnings.warn(f"tracking ended in round {row['round']}: {error}", stacklevel=2)
            self.log = NoLog()
        return False


class Watcher(Observer):
    """Calls a function after each round."""

    def __init__(self, watch: Callable[[dict[str, Any], RoundResult], None]) -> None:
        self.watch = watch

    def after_round(self, result: RoundResult, row: Row) -> bool:
        """Call back."""
        self.watch(dict(row), result)
        return False


class Budgets(Observer):
    """Ends a run when one of its budgets is used up."""

    def __init__(self, budgets: Mapping[str, Budget], totals: Totals) -> None:
        self.budgets, self.totals = budgets, totals

    def spent(self) -> str:
        """Name the first budget that is used up; nothing if none is."""
        totals = self.totals()
        return next((name for name, one in self.budgets.items() if one.is_spent(totals)), "")

    def after_round(self, result: RoundResult, row: Row) -> bool:
        """Tell whether a budget is used up."""
        return bool(self.spent())


def new_metrics(observers: Sequence[Observer]) -> list[Metric]:
    """Return what observers declare beside ours; ValueError if a name is declared twice."""
    found: list[Metric] = []
    for observer in observers:
        for metric in observer.metrics:
            if metric.name in {*COLUMNS, *(one.name for one in found)}:
                raise ValueError(f"{type(observer).__name__} declares {metric.name!r} once more")
            found.append(metric)
    return found


def measured(observers: Sequence[Observer], result: RoundResult) -> dict[str, Any]:
    """Return what all observers measure; ValueError if two of them use one name."""
    found: dict[str, Any] = {}
    for observer in observers:
        numbers = observer.measure(result)
        if twice := {"round", *found} & numbers.keys():
            raise ValueError(f"{type(observer).__name__} measures {sorted(twice)} once more")
        found |= numbers
    return found


def of_clients(observers: Sequence[Observer], result: RoundResult) -> dict[int, dict[str, float]]:
    """Return what all observers measure of each client."""
    found: dict[int, dict[str, float]] = {}
    for observer in observers:
        for client, numbers in observer.of_clients(result).items():
            found.setdefault(client, {}).update(numbers)
    return found


def payload_ratio(total: Mapping[str, Any]) -> float | None:
    """Payload bytes over those of uncompressed fp32, both directions; None without any."""
    sent = total["payload_bytes_up"] + total["payload_bytes_down"]
    return ratio(sent, total["smashed_bytes"])


def _nominal_samples(codec: Codec, total: Mapping[str, Any], steps: int) -> float:
    """Samples times the codec's nominal ratio, or where it has none times the real one."""
    samples, smashed = total["samples"], total["smashed_bytes"]
    if not smashed:
        return 0.0
    nominal = codec.nominal_ratio(samples / steps, smashed // (4 * samples))
    return float(samples * ((payload_ratio(total) or 0.0) if nominal is None else nominal))
