"""Who is there and in time, by the experiment's own system and the clock of its run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch

from fl_split.seeds import StepId
from simulations.runs.virtual_time import VirtualTime
from simulations.system.clock import time_round
from simulations.system.graph import DOWN, UP, Graph
from simulations.system.part import Numbers
from simulations.system.presence import Times
from simulations.system.system import System
from strategies import NoClientsLeft, Strategy
from strategies.server.attendance import NOBODY, Late
from strategies.server.tasks import Task, order_of, renumbered

MICRO = 1e6


class TimedAttendance:
    """Tells who counts from deadlines, sessions and dropouts of a system.

    Parameters
    ----------
    timer : VirtualTime
        Has the system, and the virtual seconds of the rounds before.
    """

    def __init__(self, timer: VirtualTime) -> None:
        self.timer, self.system, self.run = timer, timer.system, timer.run
        parts = self.system.deadline, self.system.first, self.system.presence
        self.decides = any(parts)

    @cached_property
    def _times(self) -> list[Times]:
        presence, run = self.system.presence, self.run
        return [presence.times(k, run.seed) for k in range(run.clients)] if presence else []

    def begin(self, number: int, clients: Sequence[int]) -> tuple[int, frozenset[int]]:
        """Return after how many microseconds one of `clients` is there, and who is away then.

        Raises
        ------
        NoClientsLeft
            None of them ever is.
        """
        if not self._times:
            return 0, NOBODY
        begin = now = self.timer.elapsed
        while not any(self._times[client].at(begin)[0] for client in clients):
            begin = min(self._times[client].at(begin)[1] for client in clients)
            if begin == math.inf:
                raise NoClientsLeft(f"round {number}: no client is there after {now:,.0f} s")
        away = (client for client in clients if not self._times[client].at(begin)[0])
        # A moment later: floats must not begin the round before anybody is there.
        wait = math.floor((begin - now) * MICRO) + 1 if begin > now else 0
        return wait, frozenset(away)

    def vanishes(self, at: StepId) -> bool:
        """Draw whether a client vanishes before a step."""
        if self.system.dropouts is None:
            return False
        even = torch.rand((), dtype=torch.float64, generator=at.generator("dropouts"))
        return even.item() < self.system.dropouts.probability(at.step)

    def ends(self, number: int, tasks: Sequence[Task]) -> list[float]:
        """Return when each task ended, in seconds from the begin of the round."""
        found: list[float] = self._clock(number, tasks).tolist()
        return found

    def late(
        self, number: int, tasks: Sequence[Task], last: Mapping[int, int], asked: int
    ) -> dict[int, Late]:
        """Return who is late, went away, or came after the first ones."""
        end = self._clock(number, tasks)
        found: dict[int, Late] = {}
        for client, message, asked_by in _messages(tasks, last):
            reasons = self._missed(tasks, end, message, asked_by), self._left(tasks, end, message)
            if late := [one for one in reasons if one]:
                found.setdefault(client, min(late, key=lambda one: _over(one, end)))
        if self.system.first:
            count = self.system.first.of(asked)
            there = sorted(
                (end[one], client) for client, one in last.items() if client not in found
            )
            if len(there) >= count:  # the server goes on with these, and waits for nobody else
                found = {client: Late(one.reason) for client, one in found.items()}
            found |= {client: Late(f"not among the first {count:,}") for _, client in there[count:]}
        return found

    def _clock(self, number: int, tasks: Sequence[Task]) -> Numbers:
        """Return when each task ended, (n,) in seconds from the begin of the round."""
        order = order_of(tasks)
        _, now = self.system.in_round(self.run, number, self.timer.elapsed)
        end = np.empty(len(tasks))
        end[order] = time_round(Graph.of(renumbered(tasks, order)), now).end
        return end

    def _missed(
        self, tasks: Sequence[Task], end: Numbers, message: int, asked_by: int
    ) -> Late | None:
        """Tell whether a message came after the deadline."""
        deadline = self.system.deadline
        if deadline is None:
            return None
        client = tasks[message].client
        asked = tasks[asked_by].after
        before = [n for n in asked if tasks[n].client != client] or [*asked]
        after = before if deadline.per == "exchange" else _opening(tasks)
        took = end[message] - max((end[n] for n in after), default=0.0)
        if took <= deadline.seconds:
            return None
        reason = f"late: {took:.4g} s, after the deadline of {deadline.seconds:g} s"
        return Late(reason, round(deadline.seconds * MICRO), tuple(after))

    def _left(self, tasks: Sequence[Task], end: Numbers, message: int) -> Late | None:
        """Tell whether a client went away before its message had come."""
        if not self._times:
            return None
        begin, elapsed = max((end[n] for n in _opening(tasks)), default=0.0), self.timer.elapsed
        _, until = self._times[tasks[message].client].at(elapsed + begin)
        if elapsed + end[message] <= until:
            return None
        stayed = until - elapsed
        return Late(f"went away: {stayed - begin:.4g} s into the round", round(stayed * MICRO))


def _over(late: Late, end: Numbers) -> float:
    """Return until when the server waits for a client that is late."""
    return 1 / MICRO * late.wait + max((float(end[n]) for n in late.after), default=0.0)


def _opening(tasks: Sequence[Task]) -> list[int]:
    """Return the number of the task that waits for the first client, if the round has one."""
    return [0] if tasks[0].kind == "wait" and not tasks[0].after else []


def _messages(tasks: Sequence[Task], last: Mapping[int, int]) -> Iterator[tuple[int, int, int]]:
    """Yield each message of the clients in `last`: client, its number, and that of what asked."""
    asked: dict[int, int] = {}
    for number, task in enumerate(tasks):
        if task.client in last and task.kind in DOWN:
            asked[task.client] = number
        elif task.client in last and task.kind in UP:
            yield task.client, number, asked[task.client]


def check_system(strategy: Strategy, system: System | None, clients: int, is_ushape: bool) -> None:
    """Raise ValueError if a strategy needs a system and has none, or cannot work with its parts."""
    name = type(strategy).__name__.lower()
    if strategy.needs_clock and not system:
        raise ValueError(f"{strategy} needs virtual time; give a system, as 'lte()'")
    if system and system.decides and strategy.trains_on_server:
        raise ValueError(f"{name} has no clients that could be late; leave {system.decides} out")
    if system and system.presence:
        system.presence.check(clients)
    if system and system.deadline and system.deadline.per == "exchange" and is_ushape:
        raise ValueError(
            "a deadline per exchange is not told within an exchange of a U-shape; "
            "take per='round', or end=0"
        )
    in_turn = strategy.serves_in_turn and not strategy.needs_clock
    if system and system.pool and system.deadline and in_turn:
        raise ValueError(
            f"{name} serves one client before it knows what others send over the shared pool; "
            "leave out shared or deadline, or take sflv2(order='arrival')"
        )
    if system and system.first and strategy.serves_in_turn:
        raise ValueError(
            f"{name} serves one client after the other; take deadline instead of first"
        )
