"""A Ray actor that hosts clients."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from flwr.clientapp import ClientApp

from simulations.clients.client_app import ResidentContext
from simulations.clients.worker import Worker
from simulations.engines.batching import answer_together
from simulations.engines.local_grid import Contexts
from simulations.engines.memory import keep_freed_memory
from strategies.server import flower_messages


class ClientActor:
    """The Ray actor: hosts the clients whose messages it gets."""

    def __init__(self, app: ClientApp) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self._app = app
        self._contexts: Mapping[int, ResidentContext] = {}
        self._worker: Worker | None = None
        self._timeout = 0.0

    def open(self, worker: list[Any], timeout: float, parts: list[Any]) -> None:
        """Host fresh clients of the run that `worker` refers to; rebuild those in `parts`.

        Each comes as its node id, its state and the messages it has answered since.
        """
        import ray

        self._worker = ray.get(worker[0])
        self._contexts = Contexts(self._worker)
        self._timeout = timeout
        for node, state, journal in flower_messages.from_wire(parts):
            context = self._contexts[node]
            context.state = state
            for message in journal:
                self._app(message, context)  # it was answered in time before

    def answer(self, parts: list[Any]) -> list[Any]:
        """Answer pairs of a message and whether to report the client's state after it.

        A client between two rounds, or one that failed, reports its state in any case.
        If a client hangs, only the first messages are answered.
        """
        asked = flower_messages.from_wire(parts)
        found = [(message, self._contexts[message.metadata.dst_node_id]) for message, _ in asked]
        replies = []
        for reply, (_, context), (_, is_asked) in zip(
            answer_together(self._app, found, self._timeout), found, asked, strict=False
        ):
            has_state = is_asked or context.client is None or reply.has_error()
            replies.append((reply, (context.snapshot() or ()) if has_state else None))
        return flower_messages.to_wire(replies)

    def stack(self) -> int:
        """Report how many clients' heads run as one."""
        return self._worker.stacks.size if self._worker else 0

    def states(self, nodes: list[int]) -> list[Any]:
        """Report the states of `nodes`."""
        return flower_messages.to_wire([self._contexts[node].snapshot() for node in nodes])

    def cpu_seconds(self) -> float:
        """CPU time of this actor."""
        return time.process_time()
