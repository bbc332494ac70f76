"""The Ray engine: every virtual client lives in one actor, which may die without a trace.

The driver keeps, for each client, the state it last reported and the messages answered
since: a restarted actor gets both and is where its predecessor was, bit for bit.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Annotated, Any

import torch
from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from fl_split.grouped import MEMBERS
from fl_split.specs import STRICT
from simulations.client import ResidentContext, Worker
from simulations.grid import FIRST_NODE, EngineError, LocalGrid, Session, contexts
from simulations.grouping import answer_together
from simulations.memory import keep_freed_memory
from strategies import messages

BUNDLE, CALLS = 16, 4
"""Least messages in a Ray call, to make it cheap; most calls of a push to an actor, if more.

Both in whole groups: who went forward together should come back together."""

SNAPSHOT_AFTER = 8
"""Messages that would have to be replayed before a client is asked for its state."""

STRIKES = 2
"""Deaths of an actor over one message, sent alone, until that message is given up."""

PROMPT = 10.0
"""Seconds within which an idle worker answers a question that is not worth waiting for."""

WAIT_SECONDS = 1.0
"""Longest a pull blocks before the caller may look at its own deadline, or a receiving thread
before it looks whether it is still needed."""


class Host:
    """The Ray actor: hosts the clients whose messages it gets."""

    def __init__(self, app: ClientApp) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self._app = app
        self._contexts: dict[int, ResidentContext] = {}
        self._timeout = 0.0

    def open(self, worker: list[Any], timeout: float, parts: list[Any]) -> None:
        """Host fresh clients of the run that `worker` refers to; rebuild those in `parts`.

        Each comes as its node id, its state and the messages it has answered since.
        """
        import ray

        hosted = ray.get(worker[0])
        self._contexts = contexts(hosted, len(hosted.data.partitions))
        self._timeout = timeout
        for node, state, journal in messages.from_wire(parts):
            context = self._contexts[node]
            context.state = state
            for message in journal:
                self._app(message, context)  # it was answered in time before

    def answer(self, parts: list[Any]) -> list[Any]:
        """Answer pairs of a message and whether to report the client's state after it.

        A client between two rounds, or one that failed, reports its state in any case.
        Not all may be answered, if a client hangs; those that are come first.
        """
        asked = messages.from_wire(parts)
        found = [(message, self._contexts[message.metadata.dst_node_id]) for message, _ in asked]
        replies = []
        for reply, (_, context), (_, is_asked) in zip(
            answer_together(self._app, found, self._timeout), found, asked, strict=False
        ):
            has_state = is_asked or context.client is None or reply.has_error()
            replies.append((reply, (context.snapshot() or ()) if has_state else None))
        return messages.to_wire(replies)

    def states(self, nodes: list[int]) -> list[Any]:
        """Report the states of `nodes`."""
        return messages.to_wire([self._contexts[node].snapshot() for node in nodes])

    def cpu_seconds(self) -> float:
        """CPU time of this actor."""
        return time.process_time()


@dataclass
class Line:
    """The way to one actor, and all it takes to bring it back.

    Normally messages are sent as they come. When a call fails, the actor is restarted and
    opened with what is known of its clients; the messages that were on their way go again
    one by one, so that a deadly one shows; then those that came meanwhile.

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
    done: SimpleQueue[tuple[Line, Any] | None]
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
        self._send("open", [], self.actor.open.remote(*self.opening, messages.to_wire(clients)))

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
            answered = messages.from_wire(result)
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
            self.states[node] = messages.own(state)

    def _fail(self, kind: str, bundle: list[Message], error: Exception) -> list[Message]:
        """Once all calls of a dead actor have come back, revive it; give up what kills it."""
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
        """Wait until Ray has restarted the actor; only a harmless call may be retried for ever."""
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
        self._send("answer", bundle, self.actor.answer.remote(messages.to_wire(marked)))

    def _send(self, kind: str, bundle: list[Message], call: Any) -> None:
        self.sent.append((kind, bundle))
        self._calls.put(call)


def _receive(line: Line, calls: SimpleQueue[Any], is_closed: threading.Event) -> None:
    """Hand on the outcomes of calls, in the order in which they were made."""
    import ray

    while (call := calls.get()) is not None:
        while not is_closed.is_set():
            try:
                line.done.put((line, ray.get(call, timeout=WAIT_SECONDS)))
            except ray.exceptions.GetTimeoutError:
                continue
            except Exception as error:
                line.done.put((line, error))
            break


class RayGrid(LocalGrid):
    """Send messages to the Ray actors that host the clients, a bundle per call."""

    def __init__(self, actors: Sequence[Any], worker: Worker, clients: int, timeout: float) -> None:
        import ray

        super().__init__(clients)
        self._ray = ray
        self._home = _balance([len(part) for part in worker.data.partitions], len(actors))
        self._done: SimpleQueue[tuple[Line, Any] | None] = SimpleQueue()
        # In a list, so that Ray passes the reference on and an actor fetches it once.
        opening = [ray.put(worker)], timeout
        self._lines = [Line(actor, opening, self._done) for actor in actors]
        for line in self._lines:
            line.open()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages to their actors at once."""
        ids: list[str] = []
        bundles: list[list[Message]] = [[] for _ in self._lines]
        for message in messages:
            ids.append(self._accept(message))
            bundles[self._home[message.metadata.dst_node_id - FIRST_NODE]].append(message)
        longest = max(map(len, bundles))
        size = max(BUNDLE, MEMBERS * math.ceil(longest / CALLS / MEMBERS))
        for start in range(0, longest, size):
            for line, bundle in zip(self._lines, bundles, strict=True):
                if part := bundle[start : start + size]:
                    line.push(part)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait for replies, or to be woken, and return the replies that are there."""
        wanted, replies = set(message_ids), []
        wait = WAIT_SECONDS
        while True:
            try:
                event = self._done.get(timeout=wait)
            except Empty:
                break
            wait = 0.0
            if event is not None:
                line, result = event
                replies += line.take(result)
        return [reply for reply in replies if reply.metadata.reply_to_message_id in wanted]

    def wake(self) -> None:
        """Let a blocking pull return; for another thread that has news for the caller."""
        self._done.put(None)

    def states(self) -> dict[int, RecordDict] | None:
        """State of the clients that have one, by partition id; None if a worker cannot tell."""
        found = {}
        for line in self._lines:
            found.update(line.states)
            nodes = [node for node, kept in line.journal.items() if kept]
            if not nodes:
                continue
            try:
                states = self._ray.get(line.actor.states.remote(nodes), timeout=PROMPT)
            except self._ray.exceptions.RayError:
                return None
            found.update(zip(nodes, messages.from_wire(states), strict=True))
        return {node - FIRST_NODE: state for node, state in found.items() if state}

    def restore(self, states: Mapping[int, RecordDict]) -> None:
        """Put clients back into `states`."""
        for partition, state in states.items():
            self._lines[self._home[partition]].states[FIRST_NODE + partition] = state
        for line in self._lines:
            line.open()

    def cpu_seconds(self) -> float:
        """CPU time of this process and of all actors, not of Ray's own processes.

        An actor that does not say at once (it hangs, it is being restarted) counts as it last did.
        """
        calls = [line.actor.cpu_seconds.remote() for line in self._lines]
        ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=PROMPT)
        for line, call in zip(self._lines, calls, strict=True):
            try:
                seconds = self._ray.get(call) if call in ready else line.last_seconds
            except self._ray.exceptions.RayError:
                continue
            if seconds < line.last_seconds:  # a restarted actor begins at zero again
                line.past_seconds += line.last_seconds
            line.last_seconds = seconds
        own = time.process_time()
        return own + sum(line.past_seconds + line.last_seconds for line in self._lines)

    def close(self) -> None:
        """Let go of the run: its threads, states and data."""
        for line in self._lines:
            line.close()


@validated(frozen=True, config=STRICT)
class Ray:
    """Clients in Ray actors, each always in the same one; `workers` 0 takes one per core.

    `address` joins a running Ray cluster ("auto": the one on this machine) instead of
    starting Ray here; workers are then spread over its nodes.
    """

    workers: Annotated[int, Field(ge=0)] = 0
    address: str = ""

    @contextmanager
    def session(self, app: ClientApp) -> Iterator[Session]:
        """Start Ray, or join it, and start the actors."""
        keep_freed_memory()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        quiet = {"log_to_driver": False, "logging_level": "error"}
        count = self.workers or len(os.sched_getaffinity(0))
        if self.address:
            try:
                _knock(self.address)
                ray.init(address=self.address, **quiet)
            except (OSError, ValueError) as error:
                raise EngineError(f"no Ray cluster at {self.address!r}: {_reason(error)}") from None
        else:
            # "local": of our own, even on a machine that belongs to a cluster
            ray.init("local", num_cpus=count, include_dashboard=False, **quiet)
        grids: list[RayGrid] = []
        try:
            if self.address:
                free = int(ray.available_resources().get("CPU", 0))
                count = self.workers or free
                if not 1 <= count <= free:
                    raise EngineError(
                        f"{count} workers need a CPU each, the cluster has {free} free"
                    )
            actor = ray.remote(num_cpus=1, max_restarts=-1, scheduling_strategy="SPREAD")(Host)
            actors = [actor.remote(app) for _ in range(count)]

            def begin(worker: Worker, clients: int, timeout: float) -> RayGrid:
                for grid in grids:
                    grid.close()
                grids[:] = [RayGrid(actors, worker, clients, timeout)]
                return grids[0]

            yield begin
        finally:
            for grid in grids:
                grid.close()
            ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at host:port; Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if "://" not in address and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def _error(message: Message, error: Exception) -> Message:
    return Message(Error(1, f"worker failed: {_reason(error)}"), reply_to=message)


def _reason(error: Exception) -> str:
    """One line, of the cause where Ray wraps one."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__


def _balance(sizes: Sequence[int], actors: int) -> list[int]:
    """Assign clients to actors: largest first, always to the least loaded, ties to the first."""
    load, home = [0] * actors, [0] * len(sizes)
    for client in sorted(range(len(sizes)), key=lambda client: -sizes[client]):
        home[client] = load.index(min(load))
        load[home[client]] += sizes[client] + 1
    return home
