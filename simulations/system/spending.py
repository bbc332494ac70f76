"""What a round took under a system: seconds of every party, joules of every client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simulations.system.clock import Conditions, Times, time_round
from simulations.system.devices import WATTS, Fleet
from simulations.system.graph import DOWN, UP, Graph
from simulations.system.part import Numbers
from strategies.server.tasks import SERVER, Kind

Share = Literal["head", "up", "tail", "down", "weights", "late"]

SHARES: Mapping[Share, tuple[Kind, ...]] = {
    "head": ("forward", "encode", "unpack", "backward", "end", "train"),
    "up": ("up", "output gradient up"),
    "tail": ("decode", "stand in", "middle", "serve", "step", "pack", "average"),
    "down": ("output down", "down"),
    "weights": ("sync down", "sync up"),
    "late": ("wait",),
}
"""What the critical path is made of; pooled training on the server counts as tail."""


@dataclass(frozen=True)
class Spent:
    """What a round took.

    Attributes
    ----------
    seconds : float
        From its begin until the server has all that counts.
    clients : array
        (k,) who took part.
    compute, send, receive : array
        (k,) seconds of each; of sending and receiving without latency.
    wait : array
        (k,) seconds until its own last task that a client did nothing: latency, and waiting for
        the server.
    until : array
        (k,) seconds until its own last task had ended; late clients go on after the round.
    joules : array
        (k,) watts times seconds of computing, sending, receiving and waiting.
    shares : Mapping
        Seconds of the critical path by what they were spent on; they add up to `seconds`.
    slowest : int
        The client with the most seconds of the critical path; -1 is the server.
    server_busy : float
        Seconds of work of the server, over all cores.
    queued : float
        Seconds that work waited for the server, in all.
    """

    seconds: float
    clients: NDArray[np.int64]
    compute: Numbers
    send: Numbers
    receive: Numbers
    wait: Numbers
    until: Numbers
    joules: Numbers
    shares: Mapping[Share, float]
    slowest: int
    server_busy: float
    queued: float

    @property
    def idle(self) -> Numbers:
        """(k,) seconds from a client's last task to the end of the round; it sleeps then."""
        return np.maximum(self.seconds - self.until, 0.0)


def spent(graph: Graph, now: Conditions, fleet: Fleet) -> Spent:
    """Time a round, and add up what it took."""
    return _sum(graph, time_round(graph, now), now, fleet)


def _sum(graph: Graph, times: Times, now: Conditions, fleet: Fleet) -> Spent:
    mine = ~graph.on_server
    clients, places = np.unique(graph.clients[mine], return_inverse=True)
    took = times.end - times.begin
    crosses = graph.are(*UP, *DOWN)
    busy = took - crosses * now.roads.latency[graph.clients]  # a radio is idle meanwhile

    def of(chosen: NDArray[np.bool_]) -> Numbers:
        found = np.bincount(places, (busy * chosen)[mine], minlength=len(clients))
        return found.astype(np.float64)

    is_up, is_down = graph.are(*UP), graph.are(*DOWN)
    compute, send, receive = of(~(is_up | is_down)), of(is_up), of(is_down)
    last = np.zeros(len(clients))
    np.maximum.at(last, places, times.end[mine])
    begin = times.begin[mine].min(initial=np.inf)  # nobody was there before
    wait = np.maximum(last - begin - compute - send - receive, 0.0)
    watts = [fleet.of(key)[clients] for key in WATTS]
    joules = sum(w * s for w, s in zip(watts, (compute, send, receive, wait), strict=True))
    path = times.critical_path()
    return Spent(
        times.seconds, clients, compute, send, receive, wait, last,
        np.asarray(joules), _shares(graph, took, path), _slowest(graph, took, path),
        float(took[graph.on_server & ~graph.are("wait")].sum()),
        float((times.begin - times.ready)[graph.on_server].sum()),
    )  # fmt: skip


def _shares(graph: Graph, took: Numbers, path: list[int]) -> dict[Share, float]:
    """Add up the critical path by what it was spent on."""
    on_path = np.zeros(len(took), dtype=bool)
    on_path[path] = True
    found = {
        share: float(took[on_path & graph.are(*kinds)].sum()) for share, kinds in SHARES.items()
    }
    pooled = float(took[on_path & graph.are("train") & graph.on_server].sum())
    return {**found, "head": found["head"] - pooled, "tail": found["tail"] + pooled}


def _slowest(graph: Graph, took: Numbers, path: list[int]) -> int:
    by_party: dict[int, float] = {}
    waits = graph.are("wait")
    for number in (number for number in path if not waits[number]):
        client = int(graph.clients[number])
        by_party[client] = by_party.get(client, 0.0) + float(took[number])
    return max(by_party, key=lambda party: (by_party[party], -party), default=SERVER)
