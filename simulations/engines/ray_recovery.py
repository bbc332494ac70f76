"""The driver's connection to a Ray actor, which replaces an actor that has died.

The connection keeps, for each client, the state it last reported and the messages answered
since: a new actor gets both and is where its predecessor was, bit for bit. Ray itself restarts
nothing: it would do so for ever where the machine lacks memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from textwrap import shorten
from typing import Any

from flwr.app import Error, Message, RecordDict

from simulations.engines.local_grid import WorkersLost
from strategies.server import flower_messages

SNAPSHOT_AFTER = 8
"""Messages that would have to be replayed before a client is asked for its state."""

STRIKES = 2
"""Deaths of an actor over one message, sent alone, until that message is given up."""

MOST_DEATHS = 6
"""Deaths of a worker in a row, no message answered in between, after which a run gives up; one
message that kills takes three."""

LOW_MEMORY = "running low on memory"
"""What Ray says where its memory monitor has killed a worker."""

LONGEST = 160
"""Characters of a reason; Ray's may list all that a machine does."""

WAIT_SECONDS = 1.0
"""Longest a pull blocks before the caller may look at its own deadline, or a receiving thread
before it looks whether it is still needed."""


class Post:
    """A place for a worker: the actor that has it now, and how to put another there."""

    def __init__(self, start: Callable[[], Any], kill: Callable[[Any], None]) -> None:
        self._start, self._kill = start, kill
        self.actor = start()

    def replace(self) -> None:
        """Put a new actor in the place of one that has died, or does not answer."""
        self._kill(self.actor)
        self.actor = self._start()


@dataclass
class ActorConnection:
    """The connection to one actor, and all that is needed to replace the actor.

    Normally messages are sent as they come. When the actor dies, another is started and
    opened with the known states of its clients. The messages under way are sent again one by
    one, so that a message that kills the actor is found; later messages follow. An actor that
    dies again and again, with no message answered in between, ends the run.

    Attributes
    ----------
    post : Post
        Where the actor is.
    states, journal : dict
        By node: the last state reported, and the messages answered since.
    sent : deque
        Calls on their way with their messages, oldest first; the actor answers in order.
    suspects, later : list
        Messages to be sent one by one, and those that came since.
    deaths : int
        Of the actor since it last answered a message.
    get : Callable, optional
        Waits so many seconds for the outcome of a call; by default Ray's.
    """

    post: Post
    opening: tuple[Any, float]
    done: SimpleQueue[tuple[ActorConnection, Any] | None]
    states: dict[int, RecordDict] = field(default_factory=dict)
    journal: dict[int, list[Message]] = field(default_factory=dict)
    sent: deque[tuple[str, list[Message]]] = field(default_factory=deque)
    is_careful: bool = False
    suspects: list[Message] = field(default_factory=list)
    later: list[Message] = field(default_factory=list)
    strikes: dict[str, int] = field(default_factory=dict)
    deaths: int = 0
    get: Callable[..., Any] | None = None
    past_seconds: float = 0.0
    last_seconds: float = 0.0
    _calls: SimpleQueue[Any] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        self._is_closed = threading.Event()
        self._thread = threading.Thread(
            target=_receive, args=(self, self._calls, self._is_closed), daemon=True
        )
        self._thread.start()

    @property
    def actor(self) -> Any:
        """The actor as it is now."""
        return self.post.actor

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
                self.open()
            return
        self._ask(bundle)

    def take(self, result: Any) -> list[Message]:
        """Turn the outcome of the oldest call into replies.

        Raises
        ------
        WorkersLost
            The actor has died too often.
        """
        kind, bundle = self.sent.popleft()
        if isinstance(result, Exception):
            return self._fail(kind, bundle, result)
        replies = []
        if kind == "answer":
            self.deaths = 0
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
        """Replace a dead actor once all its calls have returned; give up messages that kill it."""
        replies = []
        if kind == "answer" and self.is_careful and len(bundle) == 1 and not self.sent:
            name = bundle[0].metadata.message_id
            self.strikes[name] = self.strikes.get(name, 0) + 1
            if self.strikes[name] >= STRIKES:
                replies, bundle = [_error(bundle[0], error)], []
            self.suspects = bundle + self.suspects
        elif kind == "answer":
            self.suspects += bundle
        elif self.is_careful and not is_death(error):  # what it hosts cannot be rebuilt
            replies = [_error(message, error) for message in self.suspects + self.later]
            self.suspects, self.later = [], []
        self.is_careful = True
        if self.sent:
            return replies
        if is_death(error):
            self._bury(error)
        if self.suspects or self.later:
            self.open()
        return replies

    def _bury(self, error: Exception) -> None:
        """Put another actor in the place of a dead one, unless too many have died there."""
        self.deaths += 1
        if self.deaths >= MOST_DEATHS:
            raise WorkersLost(causes_of_death(self.deaths, error))
        self.post.replace()

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

    get = connection.get or ray.get
    while (call := calls.get()) is not None:
        while not is_closed.is_set():
            try:
                connection.done.put((connection, get(call, timeout=WAIT_SECONDS)))
            except ray.exceptions.GetTimeoutError:
                continue
            except Exception as error:
                connection.done.put((connection, error))
            break


def is_death(error: Exception) -> bool:
    """Tell whether a call failed because its worker died, not because of what it was to do."""
    import ray

    return not isinstance(error, ray.exceptions.RayTaskError)


def causes_of_death(deaths: int, error: Exception) -> str:
    """Say in one line why workers died so often, and what may help."""
    import ray

    times = f"{deaths} times in a row, with nothing done in between"
    is_memory = isinstance(error, ray.exceptions.OutOfMemoryError)
    if is_memory or LOW_MEMORY in str(error):
        return (
            f"Ray killed a worker for lack of memory {times}; take fewer workers, as "
            "engine='ray(workers=1)', smaller batches or a smaller model, or free memory"
        )
    return f"a worker died {times} ({reason(error)}); is there memory for so many workers?"


def reason(error: Exception) -> str:
    """One line, of the cause where Ray wraps one."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
    return shorten(text, LONGEST, placeholder=" ...")


def _error(message: Message, error: Exception) -> Message:
    return Message(Error(1, f"worker failed: {reason(error)}"), reply_to=message)
