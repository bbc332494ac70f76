"""The driver's connection to a Ray actor, which brings a killed actor back.

The connection keeps, for each client, the state it last reported and the messages answered
since: a restarted actor gets both and is where its predecessor was, bit for bit.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from flwr.app import Error, Message, RecordDict

from strategies.server import flower_messages

SNAPSHOT_AFTER = 8
"""Messages that would have to be replayed before a client is asked for its state."""

STRIKES = 2
"""Deaths of an actor over one message, sent alone, until that message is given up."""

WAIT_SECONDS = 1.0
"""Longest a pull blocks before the caller may look at its own deadline, or a receiving thread
before it looks whether it is still needed."""


@dataclass
class ActorConnection:
    """The connection to one actor, and all that is needed to restart the actor.

    Normally messages are sent as they come. When a call fails, the actor is restarted and
    opened with the known states of its clients. The messages under way are sent again one by
    one, so that a message that kills the actor is found; later messages follow.

    Attributes
    ----------
    states, journal : dict
        By node: the last state reported, and the messages answered since.
    sent : deque
        Calls on their way with their messages, oldest first; the actor answers in order.
    suspects, later : list
        Messages to be sent one by one, and those that came since.
    """

    actor: Any
    opening: tuple[Any, float]
    done: SimpleQueue[tuple[ActorConnection, Any] | None]
    states: dict[int, RecordDict] = field(default_factory=dict)
    journal: dict[int, list[Message]] = field(default_factory=dict)
    sent: deque[tuple[str, list[Message]]] = field(default_factory=deque)
    is_careful: bool = False
    suspects: list[Message] = field(default_factory=list)
    later: list[Message] = field(default_factory=list)
    strikes: dict[str, int] = field(default_factory=dict)
    past_seconds: float = 0.0
    last_seconds: float = 0.0
    _calls: SimpleQueue[Any] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        self._is_closed = threading.Event()
        self._thread = threading.Thread(
            target=_receive, args=(self, self._calls, self._is_closed), daemon=True
        )
        self._thread.start()

    def open(self) -> None:
        """Make the actor host this run's clients, as they are known here."""
        known = sorted({*self.states, *(node for node, kept in self.journal.items() if kept)})
        clients = [
            (node, self.states.get(node, RecordDict()), self.journal.get(node, []))
            for node in known
        ]
        self._send(
            "open", [], self.actor.open.remote(*self.opening, flower_messages.to_wire(clients))
        )

    def push(self, bundle: list[Message]) -> None:
        """Send messages, or keep them until the actor is back."""
        if self.is_careful:
            self.later += bundle
            if not self.sent:
                self._revive()
            return
        self._ask(bundle)

    def take(self, result: Any) -> list[Message]:
        """Turn the outcome of the oldest call into replies."""
        kind, bundle = self.sent.popleft()
        if isinstance(result, Exception):
            return self._fail(kind, bundle, result)
        if kind == "ping":
            self.open()
            return []
        replies = []
        if kind == "answer":
            answered = flower_messages.from_wire(result)
            for message, (reply, state) in zip(bundle, answered, strict=False):
                self._remember(message, state)
                replies.append(reply)
            if rest := bundle[len(answered) :]:
                self.push(rest)
        if self.is_careful and not self.sent:
            self._go_on()
        return replies

    def close(self) -> None:
        """End the thread that receives, which lets go of everything.

        It may be waiting for an actor that never comes back; Ray must not be shut down then.
        """
        self._is_closed.set()
        self._calls.put(None)
        self._thread.join(2 * WAIT_SECONDS)

    def _is_long(self, message: Message) -> bool:
        return len(self.journal.get(message.metadata.dst_node_id, [])) >= SNAPSHOT_AFTER

    def _remember(self, message: Message, state: Any) -> None:
        node = message.metadata.dst_node_id
        if state is None:
            self.journal.setdefault(node, []).append(message)
            return
        self.journal.pop(node, None)
        self.states.pop(node, None)
        if state:
            self.states[node] = flower_messages.own(state)

    def _fail(self, kind: str, bundle: list[Message], error: Exception) -> list[Message]:
        """Restart a dead actor once all its calls have returned; give up messages that kill it."""
        replies = []
        if kind == "answer" and self.is_careful and len(bundle) == 1 and not self.sent:
            name = bundle[0].metadata.message_id
            self.strikes[name] = self.strikes.get(name, 0) + 1
            if self.strikes[name] >= STRIKES:
                replies, bundle = [_error(bundle[0], error)], []
            self.suspects = bundle + self.suspects
        elif kind == "answer":
            self.suspects += bundle
        elif self.is_careful:  # it could not be brought back
            replies = [_error(message, error) for message in self.suspects + self.later]
            self.suspects, self.later = [], []
        self.is_careful = True
        if not self.sent and (self.suspects or self.later):
            self._revive()
        return replies

    def _revive(self) -> None:
        """Wait until Ray has restarted the actor; the waiting call has no effect and may repeat."""
        call = self.actor.cpu_seconds.options(max_task_retries=-1).remote()
        self._send("ping", [], call)

    def _go_on(self) -> None:
        if self.suspects:
            following, self.suspects = self.suspects[:1], self.suspects[1:]
            self._ask(following)
        else:
            bundle, self.later, self.is_careful = self.later, [], False
            if bundle:
                self._ask(bundle)

    def _ask(self, bundle: list[Message]) -> None:
        marked = [(message, self._is_long(message)) for message in bundle]
        self._send("answer", bundle, self.actor.answer.remote(flower_messages.to_wire(marked)))

    def _send(self, kind: str, bundle: list[Message], call: Any) -> None:
        self.sent.append((kind, bundle))
        self._calls.put(call)


def _receive(
    connection: ActorConnection, calls: SimpleQueue[Any], is_closed: threading.Event
) -> None:
    """Hand on the outcomes of calls, in the order in which they were made."""
    import ray

    while (call := calls.get()) is not None:
        while not is_closed.is_set():
            try:
                connection.done.put((connection, ray.get(call, timeout=WAIT_SECONDS)))
            except ray.exceptions.GetTimeoutError:
                continue
            except Exception as error:
                connection.done.put((connection, error))
            break


def reason(error: Exception) -> str:
    """One line, of the cause where Ray wraps one."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__


def _error(message: Message, error: Exception) -> Message:
    return Message(Error(1, f"worker failed: {reason(error)}"), reply_to=message)
