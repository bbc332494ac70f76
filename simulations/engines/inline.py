"""The inline engine: all clients in this process, one after the other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from simulations.clients.worker import Worker
from simulations.engines.batching import answer_together
from simulations.engines.local_grid import FIRST_NODE, Contexts, LocalGrid, Session
from simulations.engines.memory import keep_freed_memory


class InlineGrid(LocalGrid):
    """Run each client when its reply is asked for, in this thread."""

    def __init__(self, app: ClientApp, worker: Worker, clients: int, timeout: float) -> None:
        super().__init__(worker, clients)
        self._worker = worker
        self._app, self._timeout = app, timeout
        self._contexts = Contexts(worker)
        self._queue: deque[list[Message]] = deque()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages."""
        pushed = list(messages)
        size = self._worker.stacks.size
        self._queue += [pushed[i : i + size] for i in range(0, len(pushed), size)]
        return [self._accept(message) for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answer the oldest messages in the queue."""
        if not self._queue:
            return []
        oldest = self._queue.popleft()
        found = [(message, self._contexts[message.metadata.dst_node_id]) for message in oldest]
        replies, wanted = answer_together(self._app, found, self._timeout), set(message_ids)
        if left := oldest[len(replies) :]:
            self._queue.appendleft(left)
        return [reply for reply in replies if reply.metadata.reply_to_message_id in wanted]

    def stack(self) -> int:
        """Size of the worker's stacks."""
        return self._worker.stacks.size if self._worker.stack else 0

    def states(self) -> dict[int, RecordDict]:
        """State of the clients that have one, by partition id."""
        found = {node - FIRST_NODE: context.snapshot() for node, context in self._contexts.items()}
        # Copies, since a client's own is written anew; what lies in it never changes.
        return {partition: RecordDict({**state}) for partition, state in found.items() if state}

    def restore(self, states: Mapping[int, RecordDict]) -> None:
        """Put clients back into `states`."""
        for partition, state in states.items():
            self._contexts[FIRST_NODE + partition].state = state

    def cpu_seconds(self) -> float:
        """CPU time of this process."""
        return time.process_time()


@dataclass(frozen=True, config=STRICT)
class Inline:
    """All clients in this process, one after the other; for debugging and tests."""

    @contextmanager
    def session(self, app: ClientApp, device: str = "cpu") -> Iterator[Session]:
        """Start nothing; one GPU computes."""
        keep_freed_memory()
        yield lambda worker, clients, timeout: InlineGrid(app, worker, clients, timeout)
