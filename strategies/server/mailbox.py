"""Messages between a strategy and its clients: counted, with failures turned into drops."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fl_split.exchange.account import Account
from fl_split.exchange.link import UNREADABLE
from fl_split.exchange.records import Record
from fl_split.exchange.served import HalfServed, Served
from strategies.server import flower_messages
from strategies.server.threads import ServerThreads
from strategies.server.training import OutOfMemory, TrainingFailed

PULL_INTERVAL, LONGEST_INTERVAL = 0.01, 0.25
"""Seconds between two looks for replies, on runtimes that do not wait themselves; from the one to
the other they grow with the wait: over a network a look is a request to a SuperLink."""

GROWTH = 0.1
"""Share of the wait so far that passes until the next look."""

WAIT_SECONDS = 60.0
"""Longest wait for the server's threads in one go, when nothing else can happen."""

PUSH_AT = 8
"""Queued messages that are pushed while other replies still wait to be served."""

DATA_ERROR = "DataError: "
"""What the error of a client says whose data cannot be read: without it results would be others."""

MEMORY_ERROR = "OutOfMemoryError: "
"""What the error of a client says for which a GPU has too little memory: others fare no better."""


@dataclass
class Waiting:
    """Payloads that are served when their clients have answered, and what follows then."""

    half: HalfServed
    then: Callable[[Served], None]
    missing: set[int]
    answers: dict[int, Any] = field(default_factory=dict)


@dataclass
class Mailbox:
    """Send to clients by partition id, receive in any order, never more than one message per node.

    A client that answers with an error, or not within `timeout` seconds, is dropped: it
    gets no further message and its reason stands in its traffic row. One whose data cannot be read
    ends the run (TrainingFailed). `kind` is what messages call those that are sent to.
    """

    grid: Grid
    nodes: dict[int, int]
    group: str
    timeout: float
    threads: ServerThreads
    account: Account = field(default_factory=Account)
    kind: str = "client"
    _outbox: list[tuple[int, Message]] = field(default_factory=list)
    _pending: dict[str, int] = field(default_factory=dict)
    _awaited: set[int] = field(default_factory=set)
    _inbox: dict[int, Record] = field(default_factory=dict)
    _arrays: flower_messages.Arrays = field(default_factory=dict)
    _deadline: float = 0.0

    def send(self, client: int, record: Record, kind: str = flower_messages.TRAIN) -> None:
        """Queue a record; it leaves at the latest with the next call that waits for a reply."""
        content = flower_messages.content(record, self._arrays)
        action = kind + record.action
        message = Message(content, self.nodes[client], action, group_id=self.group)
        self.account.count_down(client, record)
        self._outbox.append((client, message))

    def receive(self, client: int) -> Record | None:
        """Wait for the reply of `client`; None if it was dropped."""
        self._flush(PUSH_AT)
        while client not in self._inbox and self._is_owed(client):
            self._wait()
        return self._inbox.pop(client, None)

    def push(self) -> None:
        """Let everything queued leave now, as one batch."""
        self._flush(1)

    def batches(self) -> Iterator[dict[int, Record]]:
        """Yield replies as they come, those there at the same time together.

        Ends when no client owes one and the server's threads are idle.
        """
        while True:
            self._flush(PUSH_AT)
            if self._inbox:
                found, self._inbox = self._inbox, {}
                yield found
            elif self._outbox or self._pending or self.threads.busy:
                self._wait()
            else:
                return

    def replies(self) -> Iterator[tuple[int, Record]]:
        """Yield replies as they come, one by one, until no client owes one."""
        for batch in self.batches():
            yield from batch.items()

    def settle(self) -> None:
        """Wait until the server's threads are idle; replies that come meanwhile are kept."""
        while self.threads.busy:
            self._wait()
        self.push()

    def drop(self, client: int, reason: str) -> None:
        """Exclude `client` from the rest of the round."""
        self.account.of(client).dropped = reason

    def dropped(self, client: int) -> bool:
        """Tell whether `client` was dropped in this round."""
        traffic = self.account.traffic.get(client)
        return traffic is not None and bool(traffic.dropped)

    def _lose(self, client: int, reason: str) -> None:
        """Drop a client that gave an error; TrainingFailed if others would hide that data lack.

        OutOfMemory if a GPU is too small.
        """
        if MEMORY_ERROR in reason:
            raise OutOfMemory(f"{self.kind} {client}, alone")
        _, is_of_data, text = reason.partition(DATA_ERROR)
        if is_of_data:
            fault = text.removesuffix("'>")  # of Flower's own runtime
            raise TrainingFailed(f"{self.kind} {client} cannot read its data: {fault}")
        self.drop(client, reason)

    def _is_owed(self, client: int) -> bool:
        return client in self._awaited or any(client == queued for queued, _ in self._outbox)

    def _flush(self, enough: int) -> None:
        """Push what is queued, once it is enough to be worth a call."""
        if len(self._outbox) < enough:
            return
        clients = [client for client, _ in self._outbox]
        ids = self.grid.push_messages([message for _, message in self._outbox])
        self._pending.update(zip(ids, clients, strict=True))
        self._awaited.update(clients)
        self._outbox = []
        self._deadline = time.monotonic() + self.timeout

    def _wait(self) -> None:
        """Let one thing happen: jobs of threads end, replies come, or everyone late is dropped."""
        self._flush(PUSH_AT if self._pending or self.threads.busy else 1)
        if self.threads.settle():
            return
        if not self._pending:
            self.threads.settle(WAIT_SECONDS)
            return
        replies = list(self.grid.pull_messages(list(self._pending)))
        for reply in replies:
            client = self._pending.pop(reply.metadata.reply_to_message_id)
            self._awaited.discard(client)
            if reply.has_error():
                self._lose(client, _last_line(reply.error.reason))
                continue
            try:
                record = flower_messages.read(reply)
                self.account.count_up(client, record)
                self._inbox[client] = record
            except UNREADABLE as error:
                self.drop(client, f"sent unreadable numbers: {error}")
        if replies:
            self._deadline = time.monotonic() + self.timeout
        elif time.monotonic() > self._deadline:
            for client in self._pending.values():
                self.drop(client, f"no reply within {self.timeout:g} seconds")
            self._pending.clear()
            self._awaited.clear()
        elif self.threads.busy:
            self.threads.settle(PULL_INTERVAL)
        else:
            waited = time.monotonic() + self.timeout - self._deadline
            time.sleep(min(LONGEST_INTERVAL, max(PULL_INTERVAL, GROWTH * waited)))


def _last_line(reason: str | None) -> str:
    """Keep what an error says, in one form: without the traceback or class around it.

    Flower's simulation puts a traceback before it, its deployment writes
    ``<class 'module.Kind'>:<'text'>``.
    """
    lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
    if not lines:
        return "unknown error"
    wrapped = re.match(r"<class '(?:.*\.)?(\w+)'>:<'(.*?)(?:'>)?$", lines[-1])
    return f"{wrapped[1]}: {wrapped[2]}" if wrapped else lines[-1]
