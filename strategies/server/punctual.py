"""A conversation in which clients may come too late, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fl_split.exchange.link import Arrival
from strategies.server.conversation import Conversation
from strategies.server.mailbox import PUSH_AT

LEAST_TOKENS = 2048
"""Tokens from which on a group of clients is worth a job, and a message to each worker."""


@dataclass(kw_only=True)
class Punctual(Conversation):
    """A round in which the attendance says who is in time; by default everyone is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.attendance = self.training.attendance
        self.late: set[int] = set()
        self._early: dict[int, Arrival] = {}

    def arrivals(self) -> Iterator[dict[int, Arrival]]:
        """Yield payloads as they come, a few at once, until every client has ended."""
        is_over = False
        while not is_over:
            for batch in self.mailbox.batches():
                found = [(k, one) for k, r in batch.items() if (one := self.sort(k, r)) is not None]
                size = max(PUSH_AT, self.training.stack)
                for start in range(0, len(found), size):
                    yield dict(found[start : start + size])
                self._give_up_lost()
            is_over = not self._give_up_lost()

    def finish(self) -> None:
        """Wait until every client has ended, where none has payloads to send."""
        for arrivals in self.arrivals():
            for client in arrivals:
                self.mailbox.drop(client, "sent a payload that nobody asked for")

    def wait_for_answers(self) -> None:
        """Wait until nothing is half served and the server's threads are idle."""
        self.mailbox.settle()
        while self._waiting:
            client = next(iter(self._waiting))
            record = self.mailbox.receive(client)
            if record is None:
                self._answered(client, None)
            else:
                self.sort(client, record)
            if not self._waiting:
                self.mailbox.settle()

    def payload(self, client: int) -> Arrival | None:
        """Wait for the next payload of `client`; None when it has ended or was dropped."""
        if (early := self._early.pop(client, None)) is not None:
            return early
        if client in self.ends:
            return None
        arrival = self._next(client)
        self.drop_late([client])
        return None if self.mailbox.dropped(client) else arrival

    def wait_for_all(self, clients: Sequence[int]) -> None:
        """Wait for the next payload of each client, then leave out who came too late."""
        awaited = [client for client in clients if client not in self._early]
        for client in awaited:
            if (arrival := self._next(client)) is not None:
                self._early[client] = arrival
        self.drop_late(awaited)

    def groups(self, clients: Sequence[int]) -> Iterator[dict[int, Arrival]]:
        """Yield payloads in groups as they come, in order; the cuts never depend on the machine."""
        size, tokens = self.training.group_size(len(clients)), 0
        group: dict[int, Arrival] = {}
        for client in clients:
            arrival = self.payload(client)
            if arrival is not None:
                group[client] = arrival
                tokens += arrival.rows * arrival.tokens
            if len(group) >= size and tokens >= LEAST_TOKENS:
                yield group
                group, tokens = {}, 0
        if group:
            yield group

    def gather(self, clients: Sequence[int]) -> dict[int, Arrival]:
        """Wait for the next payload of each client; return those in time, still to be served."""
        self.wait_for_all(clients)
        return {client: self._early[client] for client in clients if client in self._early}

    def earliest(self, clients: Sequence[int]) -> int | None:
        """Return whose payload comes first in virtual time; None when all have ended."""
        self.wait_for_all(clients)
        ends = self.attendance.ends(self.number, self.tasks.tasks)
        came = {client: ends[self.tasks.last(client)] for client in self._early}
        return min(came, key=lambda client: (came[client], client), default=None)

    def drop_late(self, clients: Sequence[int]) -> None:
        """Leave out those of `clients` whose last message came too late."""
        last = {k: self.tasks.last(k) for k in clients if not self.mailbox.dropped(k)}
        if not self.attendance.decides or not last:
            return
        late = self.attendance.late(self.number, self.tasks.tasks, last, len(self.clients))
        self.late |= late.keys()
        for client, found in late.items():
            self.mailbox.drop(client, found.reason)
            self._early.pop(client, None)
            if self.ends.pop(client, None) is None:  # nobody answers its payload
                self.client_flops -= self._work[client].backward
        for wait, after in sorted({(one.wait, one.after) for one in late.values() if one.wait}):
            self.tasks.wait(wait, *after)

    def _next(self, client: int) -> Arrival | None:
        """Wait for the next payload of `client`; None when it has ended or was dropped."""
        while client not in self.ends and not self.mailbox.dropped(client):
            record = self.mailbox.receive(client)
            arrival = None if record is None else self.sort(client, record)
            if record is None or arrival is not None:  # else it is lost: the next one comes
                return arrival
        return None
