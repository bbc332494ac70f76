"""Serving clients that do not wait: tails step on what has come, and nothing is sent back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from fl_split.codecs import Received
from fl_split.exchange.link import Arrival
from fl_split.exchange.records import TAKEN, Record, Weights
from fl_split.exchange.served import HalfServed, Served
from strategies.server.round import Round
from strategies.server.tail import TrainedTail
from strategies.server.tasks import SERVER

Tails = Mapping[int, TrainedTail]
"""Tails of clients."""

Keep = Callable[[int, Received], None]
"""What is done with a payload of a client."""


def send_beside(round: Round, client: int, name: str, weights: Weights, flops: int) -> None:
    """Let a client begin with weights that the server has made for it, by so many operations."""
    round.beside.setdefault(client, {})[name] = weights
    round.server_flops += flops
    round.tasks.make(weights, flops)


def take(
    round: Round, clients: Sequence[int], tails: Tails | None = None, keep: Keep | None = None
) -> list[int]:
    """Take one step of a tail on the next payload of each client, in order; let them go on.

    `tails` are the clients' own; by default it is the shared one. Returns who had a payload.
    """
    if round.attendance.decides:
        round.wait_for_all(clients)
    came = list[int]()
    for arrivals in round.groups(clients):
        served = _step(round, arrivals, tails)
        came += arrivals
        if keep:
            for client in served:
                keep(client, arrivals[client].received)
    return came


def collect(round: Round, clients: Sequence[int], keep: Keep) -> list[int]:
    """Keep the next payload of each client, of which no tail learns yet; let them go on.

    Returns who had a payload.
    """
    if round.attendance.decides:
        round.wait_for_all(clients)
    came = list[int]()
    for arrivals in round.groups(clients):
        for client, arrival in arrivals.items():
            keep(client, arrival.received)
            _let_go(round, client)
        came += arrivals
    return came


def _step(round: Round, arrivals: Mapping[int, Arrival], tails: Tails | None) -> list[int]:
    """Take the steps; return whose losses are finite."""
    steps, graphs = [], round.training.graphs
    for number, (client, arrival) in enumerate(arrivals.items()):
        tail = tails[client] if tails else round.tail
        moment = round.moment_of(client) if tails else round.moment(round.done + number, 1)
        steps.append(partial(tail.step, {client: arrival}, round.at(client), graphs, moment))
    results = round.training.threads.map(_call, steps) if tails else [*map(_call, steps)]
    for client, served in zip(arrivals, results, strict=True):
        owner = client if tails else SERVER
        round.note(served, [client], owner)
        round.tasks.step(owner)
        if not round.mailbox.dropped(client):
            _let_go(round, client, served.losses[client])
    return [client for client, served in zip(arrivals, results, strict=True) if served.cuts]


def _call(step: partial[Served | HalfServed]) -> Served:
    served = step()
    assert isinstance(served, Served)  # no U-shape
    return served


def _let_go(round: Round, client: int, loss: float | None = None) -> None:
    """Say that a payload has come, whose loss is noted; nobody waits for that."""
    at = round.at(client)
    if round.vanishes(at.next()):
        return
    if loss is not None:
        round.losses.setdefault(client, {})[at.step] = loss
    round.steps[client] += 1
    round.mailbox.send(client, Record(TAKEN, step=at.step))
