"""Virtual time of a run: its task graphs, read by the clock of a system.

The same code times a run while it goes on and a finished one under any other system.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from simulations.runs import task_files
from simulations.runs.columns import ENERGY_JOULES, OF_SYSTEM, VIRTUAL_SECONDS
from simulations.runs.observers import Observer
from simulations.system.graph import Graph
from simulations.system.spending import Spent, spent
from simulations.system.system import System, Timed
from strategies import RoundResult


def timed(folder: Path, rounds: int, run: Timed, system: System) -> Iterator[Spent]:
    """Yield what each of the first `rounds` rounds of a run takes under a system.

    Raises
    ------
    DamagedError
        A task graph is missing or torn.
    """
    elapsed = 0.0
    for number, graph in enumerate(task_files.read(folder, rounds), start=1):
        found = _time(graph, number, elapsed, run, system)
        elapsed += found.seconds
        yield found


def _time(graph: Graph, number: int, elapsed: float, run: Timed, system: System) -> Spent:
    fleet, now = system.in_round(run, number, elapsed)
    return spent(graph, now, fleet)


class VirtualTime(Observer):
    """Times each round under the experiment's own system.

    Parameters
    ----------
    system : System
        Its own.
    run : Timed
        What the clock must know of it.

    Attributes
    ----------
    elapsed : float
        Virtual seconds so far; a run that goes on sets it.
    """

    metrics = OF_SYSTEM

    def __init__(self, system: System, run: Timed) -> None:
        self.system, self.run, self.elapsed = system, run, 0.0
        self._last: tuple[int, Spent] | None = None

    @property
    def speeds(self) -> Sequence[float]:
        """(clients,) operations per second of the clients' devices."""
        found: list[float] = self.system.fleet(self.run.clients, self.run.seed).flops.tolist()
        return found

    def measure(self, result: RoundResult) -> Mapping[str, float]:
        """Return both, all clients together."""
        found = self._spent(result)
        return {VIRTUAL_SECONDS: found.seconds, ENERGY_JOULES: float(found.joules.sum())}

    def of_clients(self, result: RoundResult) -> Mapping[int, Mapping[str, float]]:
        """Return seconds until each client had ended, and its joules."""
        found = self._spent(result)
        return {
            int(client): {VIRTUAL_SECONDS: float(seconds), ENERGY_JOULES: float(joules)}
            for client, seconds, joules in zip(
                found.clients, found.until, found.joules, strict=True
            )
        }

    def _spent(self, result: RoundResult) -> Spent:
        """Time a round once."""
        if self._last is None or self._last[0] != result.round:
            graph = Graph.of(result.tasks)
            found = _time(graph, result.round, self.elapsed, self.run, self.system)
            self.elapsed += found.seconds
            self._last = result.round, found
        return self._last[1]
