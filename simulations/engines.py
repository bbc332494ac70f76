"""Engines: Flower grids that run virtual clients here, inline or in Ray actors.

Both keep a client live in the process that serves it (see ResidentContext) and never
poll. Flower's own runtime, ``flwr run``, is the third engine and needs nothing from here.
"""

from __future__ import annotations

import os
import time
import uuid
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, Protocol

import torch
from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

# Private to Flower, and needed: outside a Flower process nobody sets who we are, and
# ``Message(...)`` refuses to be made without.
from flwr.supercore.task_identity import TaskIdentity
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from simulations.client import ResidentContext, Worker
from strategies import messages

FIRST_NODE = 2
"""Node id of partition 0; Flower reserves lower ones."""

BUNDLE = 16
"""Messages in one Ray call: enough to make it cheap, few enough to overlap with the server."""

WAIT_SECONDS = 1.0
"""Longest a pull blocks before the caller may look at its own deadline."""


class LocalGrid(Grid):
    """A Flower grid over virtual clients whose node id is their partition id plus FIRST_NODE."""

    def __init__(self, clients: int) -> None:
        self._nodes = [FIRST_NODE + partition for partition in range(clients)]
        self._run = Run.create_empty(run_id=1)
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1

    @abstractmethod
    def cpu_seconds(self) -> float:
        """CPU time of the server and of all workers so far."""

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message, as the constructor would."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, by partition."""
        return list(self._nodes)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull until every reply is there or `timeout` seconds have passed."""
        waiting, replies = set(self.push_messages(messages)), []
        deadline = None if timeout is None else time.monotonic() + timeout
        while waiting and (deadline is None or time.monotonic() < deadline):
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies


class InlineGrid(LocalGrid):
    """Run each client when its reply is asked for, in this process."""

    def __init__(self, app: ClientApp, worker: Worker, clients: int) -> None:
        super().__init__(clients)
        self._app = app
        self._contexts = _contexts(worker, range(clients))
        self._queue: deque[Message] = deque()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages."""
        pushed = [_with_id(message) for message in messages]
        self._queue.extend(pushed)
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answer the oldest message in the queue."""
        if not self._queue:
            return []
        message = self._queue.popleft()
        context = self._contexts[message.metadata.dst_node_id]
        reply = _answer(self._app, message, context)
        return [reply] if message.metadata.message_id in set(message_ids) else []

    def cpu_seconds(self) -> float:
        """CPU time of this process."""
        return time.process_time()


class RayGrid(LocalGrid):
    """Send messages to the Ray actors that host the clients, a bundle per call."""

    def __init__(self, actors: Sequence[Any], worker: Worker, clients: int) -> None:
        import ray

        super().__init__(clients)
        self._ray, self._actors = ray, actors
        self._home = _balance([len(part) for part in worker.data.partitions], len(actors))
        # In a list, so that Ray passes the reference on and an actor fetches it once.
        self._worker = [ray.put(worker)]
        self._calls: dict[Any, tuple[Any, list[Message]]] = {}
        self._clocks = [_Clock() for _ in actors]

    def push_messages(self, messages_: Iterable[Message]) -> Iterable[str]:
        """Send messages to their actors at once."""
        pushed = [_with_id(message) for message in messages_]
        bundles: dict[int, list[Message]] = {}
        for message in pushed:
            home = self._home[message.metadata.dst_node_id - FIRST_NODE]
            bundles.setdefault(home, []).append(message)
        for start in range(0, max(map(len, bundles.values()), default=0), BUNDLE):
            for home, bundle in bundles.items():
                part = bundle[start : start + BUNDLE]
                if part:
                    data = [messages.to_wire(message) for message in part]
                    actor = self._actors[home]
                    self._calls[actor.answer.remote(self._worker, data)] = actor, part
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait for the next finished bundle and return its replies.

        A call that failed as a whole (its actor died) answers every message with an error.
        """
        if not self._calls:
            return []
        wanted, replies = set(message_ids), []
        done, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=WAIT_SECONDS)
        for call in done:
            actor, sent = self._calls.pop(call)
            try:
                replies += [messages.from_wire(data) for data in self._ray.get(call)]
            except self._ray.exceptions.RayError as error:
                reason = f"worker failed: {str(error).splitlines()[0]}"
                replies += [Message(Error(1, reason), reply_to=message) for message in sent]
                # Ray restarts the actor; a call that may be retried waits until it is back.
                self._ray.get(actor.cpu_seconds.options(max_task_retries=-1).remote())
        return [reply for reply in replies if reply.metadata.reply_to_message_id in wanted]

    def cpu_seconds(self) -> float:
        """CPU time of this process and of all actors, not of Ray's own processes."""
        calls = [actor.cpu_seconds.options(max_task_retries=-1).remote() for actor in self._actors]
        clocks = zip(self._clocks, self._ray.get(calls), strict=True)
        return time.process_time() + sum(clock.read(seconds) for clock, seconds in clocks)


class _Clock:
    """CPU time of an actor over its lives: a restarted one begins at zero again."""

    def __init__(self) -> None:
        self._past = self._last = 0.0

    def read(self, seconds: float) -> float:
        if seconds < self._last:
            self._past += self._last
        self._last = seconds
        return self._past + seconds


class Host:
    """The Ray actor: hosts the clients whose messages it gets."""

    def __init__(self, app: ClientApp) -> None:
        torch.set_num_threads(1)
        self._app = app
        self._worker: Any = None
        self._contexts: dict[int, ResidentContext] = {}

    def answer(self, worker: list[Any], bundle: list[Any]) -> list[Any]:
        """Answer serialised messages of the run that `worker` refers to."""
        import ray

        if self._worker != worker[0]:
            self._worker = worker[0]
            hosted = ray.get(worker[0])
            self._contexts = _contexts(hosted, range(len(hosted.data.partitions)))
        replies = []
        for data in bundle:
            message = messages.from_wire(data)
            context = self._contexts[message.metadata.dst_node_id]
            replies.append(messages.to_wire(_answer(self._app, message, context)))
        return replies

    def cpu_seconds(self) -> float:
        """CPU time of this actor."""
        return time.process_time()


class Session(Protocol):
    """Runs one experiment after the other on workers that are started once."""

    def __call__(self, worker: Worker, clients: int) -> LocalGrid:
        """Return a grid of `clients` fresh virtual clients."""
        ...


class Engine(Protocol):
    """What runs the clients."""

    def session(self, app: ClientApp) -> AbstractContextManager[Session]:
        """Start the workers, and stop them in the end."""
        ...


@dataclass(frozen=True, config=STRICT)
class Inline:
    """All clients in this process, one after the other; for debugging and tests."""

    @contextmanager
    def session(self, app: ClientApp) -> Iterator[Session]:
        """Start nothing."""
        yield lambda worker, clients: InlineGrid(app, worker, clients)


@dataclass(frozen=True, config=STRICT)
class Ray:
    """Clients in Ray actors, each always in the same one; `workers` 0 takes one per core."""

    workers: Annotated[int, Field(ge=0)] = 0

    @contextmanager
    def session(self, app: ClientApp) -> Iterator[Session]:
        """Start Ray and the actors."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        count = self.workers or len(os.sched_getaffinity(0))
        ray.init(
            num_cpus=count, include_dashboard=False, log_to_driver=False, logging_level="error"
        )
        try:
            actor = ray.remote(num_cpus=1, max_restarts=-1)(Host)
            actors = [actor.remote(app) for _ in range(count)]
            yield lambda worker, clients: RayGrid(actors, worker, clients)
        finally:
            ray.shutdown()


ENGINES = {"inline": Inline, "ray": Ray}


def _contexts(worker: Worker, partitions: Iterable[int]) -> dict[int, ResidentContext]:
    nodes = {FIRST_NODE + partition: partition for partition in partitions}
    return {node: ResidentContext(node, partition, worker) for node, partition in nodes.items()}


def _with_id(message: Message) -> Message:
    message.metadata.__dict__["_message_id"] = uuid.uuid4().hex * 2  # as a SuperLink would
    return message


def _answer(app: ClientApp, message: Message, context: ResidentContext) -> Message:
    try:
        return app(message, context)
    except Exception as error:  # whatever a client does must not end the run
        return Message(Error(1, f"{type(error).__name__}: {error}"), reply_to=message)


def _balance(sizes: Sequence[int], actors: int) -> list[int]:
    """Assign clients to actors: largest first, always to the least loaded, ties to the first."""
    load, home = [0] * actors, [0] * len(sizes)
    for client in sorted(range(len(sizes)), key=lambda client: -sizes[client]):
        home[client] = load.index(min(load))
        load[home[client]] += sizes[client] + 1
    return home
