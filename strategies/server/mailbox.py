"""Messages between a strategy and its clients: counted, with failures turned into drops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from strategies.server import messages
from strategies.server.threads import Crew

PULL_INTERVAL = 0.01
"""Seconds between two looks for replies, on runtimes that do not wait themselves."""

WAIT_SECONDS = 60.0
"""Longest wait for the crew in one go, when nothing else can happen."""

PUSH_AT = 8
"""Queued messages that are pushed while other replies still wait to be served."""


def ratio(payload_bytes: int, smashed_bytes: int) -> float | None:
    """Payload bytes of both directions over twice the fp32 data one way; None without any."""
    return payload_bytes / (2 * smashed_bytes) if smashed_bytes else None


@dataclass
class Traffic:
    """Bytes and work of one client in one round; see :meth:`add` for how they are counted."""

    samples: int = 0
    steps: int = 0
    payload_bytes_up: int = 0
    payload_bytes_down: int = 0
    head_bytes_up: int = 0
    head_bytes_down: int = 0
    wire_bytes_up: int = 0
    wire_bytes_down: int = 0
    smashed_bytes: int = 0
    client_cpu_seconds: float = 0.0
    dropped: str = ""

    def count_request(self, message: Message) -> None:
        """Add what went down to the client."""
        self.payload_bytes_down += messages.payload_bytes(message.content)
        self.head_bytes_down += messages.head_bytes(message.content)
        self.wire_bytes_down += messages.wire_bytes(message)

    def count_reply(self, message: Message) -> None:
        """Add what came up from the client, and the work it reports."""
        self.payload_bytes_up += messages.payload_bytes(message.content)
        self.head_bytes_up += messages.head_bytes(message.content)
        self.wire_bytes_up += messages.wire_bytes(message)
        work: Any = message.content.get(messages.METRICS, MetricRecord())
        self.samples += int(work.get(messages.NUM_SAMPLES, 0))
        self.steps += int(work.get(messages.NUM_STEPS, 0))
        self.smashed_bytes += int(work.get(messages.SMASHED_BYTES, 0))
        self.client_cpu_seconds += work.get(messages.CPU_SECONDS, 0.0)

    def row(self) -> dict[str, int | float | str | None]:
        """Return the fields as a row of a table, with the ratio to uncompressed fp32."""
        return {**asdict(self), "ratio": self.ratio}

    @property
    def ratio(self) -> float | None:
        """See :func:`ratio`, for this client and round."""
        return ratio(self.payload_bytes_up + self.payload_bytes_down, self.smashed_bytes)


@dataclass
class Mailbox:
    """Send to clients by partition id, receive in any order, never more than one message per node.

    A client that answers with an error, or not within `timeout` seconds, is dropped: it
    gets no further message and its reason stands in its traffic row.
    """

    grid: Grid
    nodes: dict[int, int]
    group: str
    timeout: float
    crew: Crew
    traffic: dict[int, Traffic] = field(default_factory=dict)
    _outbox: list[tuple[int, Message]] = field(default_factory=list)
    _pending: dict[str, int] = field(default_factory=dict)
    _awaited: set[int] = field(default_factory=set)
    _inbox: dict[int, Message] = field(default_factory=dict)
    _deadline: float = 0.0

    def send(self, client: int, action: str, content: RecordDict) -> None:
        """Queue a message; it leaves at the latest with the next call that waits for a reply."""
        message = Message(content, self.nodes[client], action, group_id=self.group)
        self.traffic.setdefault(client, Traffic()).count_request(message)
        self._outbox.append((client, message))

    def receive(self, client: int) -> Message | None:
        """Wait for the reply of `client`; None if it was dropped."""
        self._flush(PUSH_AT)
        while client not in self._inbox and self._is_owed(client):
            self._wait()
        return self._inbox.pop(client, None)

    def push(self) -> None:
        """Let everything queued leave now, as one batch."""
        self._flush(1)

    def batches(self) -> Iterator[dict[int, Message]]:
        """Yield replies as they come, those there at the same time together.

        Ends when no client owes one and the crew is idle.
        """
        while True:
            self._flush(PUSH_AT)
            if self._inbox:
                found, self._inbox = self._inbox, {}
                yield found
            elif self._outbox or self._pending or self.crew.busy:
                self._wait()
            else:
                return

    def arrivals(self) -> Iterator[tuple[int, Message]]:
        """Yield replies as they come, one by one, until no client owes one."""
        for batch in self.batches():
            yield from batch.items()

    def settle(self) -> None:
        """Wait until the crew is idle; replies that come meanwhile are kept."""
        while self.crew.busy:
            self._wait()
        self.push()

    def drop(self, client: int, reason: str) -> None:
        """Exclude `client` from the rest of the round."""
        self.traffic.setdefault(client, Traffic()).dropped = reason

    def dropped(self, client: int) -> bool:
        """Tell whether `client` was dropped in this round."""
        return bool(self.traffic.get(client, Traffic()).dropped)

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
        """Let one thing happen: jobs of the crew end, replies come, or everyone late is dropped."""
        self._flush(PUSH_AT if self._pending or self.crew.busy else 1)
        if self.crew.settle():
            return
        if not self._pending:
            self.crew.settle(WAIT_SECONDS)
            return
        replies = list(self.grid.pull_messages(list(self._pending)))
        for reply in replies:
            client = self._pending.pop(reply.metadata.reply_to_message_id)
            self._awaited.discard(client)
            if reply.has_error():
                self.drop(client, _last_line(reply.error.reason))
                continue
            try:
                self.traffic[client].count_reply(reply)
                self._inbox[client] = reply
            except (TypeError, ValueError, OverflowError) as error:
                self.drop(client, f"sent unreadable metrics: {error}")
        if replies:
            self._deadline = time.monotonic() + self.timeout
        elif time.monotonic() > self._deadline:
            for client in self._pending.values():
                self.drop(client, f"no reply within {self.timeout:g} seconds")
            self._pending.clear()
            self._awaited.clear()
        elif self.crew.busy:
            self.crew.settle(PULL_INTERVAL)
        else:
            time.sleep(PULL_INTERVAL)


def _last_line(reason: str | None) -> str:
    """Keep what an error says, without the traceback that Flower puts before it."""
    lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
    return lines[-1] if lines else "unknown error"
