"""The Ray engine: each virtual client lives in one actor; a killed actor changes no result."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated, Any

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from fl_split.accelerators import workers_for
from fl_split.clash import ClashError, check_folder
from fl_split.exchange.stacked import MEMBERS
from fl_split.foreign import travelling
from fl_split.specs import STRICT
from simulations.clients.worker import Worker, short_of
from simulations.data.ragged import Ragged
from simulations.engines.local_grid import FIRST_NODE, EngineError, LocalGrid, Session
from simulations.engines.memory import keep_freed_memory
from simulations.engines.ray_actor import ClientActor
from simulations.engines.ray_recovery import WAIT_SECONDS, ActorConnection, Post, reason
from simulations.engines.ray_start import (
    PROMPT,
    end,
    knock,
    shared,
    temporary_folder,
    too_many,
    wait_for,
)
from strategies.server import flower_messages
from strategies.server.threads import available_cores

BUNDLE, CALLS = 16, 4
"""Least messages in a Ray call, to make it cheap; most calls of a push to an actor, if more.

Both in whole groups: clients whose heads ran as one should come back together."""


class RayGrid(LocalGrid):
    """Send messages to the Ray actors that host the clients, a bundle per call."""

    def __init__(self, posts: Sequence[Post], worker: Worker, clients: int, timeout: float) -> None:
        import ray

        super().__init__(worker, clients)
        self._ray = ray
        self._asked, self._stack = worker.stack, worker.stack or MEMBERS
        self._home = _balance(Ragged.of(worker.data.partitions).sizes.tolist(), len(posts))
        self._done: SimpleQueue[tuple[ActorConnection, Any] | None] = SimpleQueue()
        # In a list, so that Ray passes the reference on and an actor fetches it once.
        with _by_value(worker.modules):
            opening = [shared(worker)], timeout
        self._connections = [ActorConnection(post, opening, self._done) for post in posts]
        for connection in self._connections:
            connection.open()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages to their actors at once."""
        ids: list[str] = []
        bundles: list[list[Message]] = [[] for _ in self._connections]
        for message in messages:
            ids.append(self._accept(message))
            bundles[self._home[message.metadata.dst_node_id - FIRST_NODE]].append(message)
        longest = max(map(len, bundles))
        size = max(BUNDLE, self._stack * math.ceil(longest / CALLS / self._stack))
        for start in range(0, longest, size):
            for connection, bundle in zip(self._connections, bundles, strict=True):
                if part := bundle[start : start + size]:
                    connection.push(part)
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
                connection, result = event
                replies += connection.take(result)
        return [reply for reply in replies if reply.metadata.reply_to_message_id in wanted]

    def wake(self) -> None:
        """Make a blocking pull return; called by other threads that have a result."""
        self._done.put(None)

    def stack(self) -> int:
        """Size of the stacks of the worker that has the least; it is said when one gets smaller."""
        if self._asked < 2:
            return self._asked
        calls = [connection.actor.stack.remote() for connection in self._connections]
        ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=PROMPT)
        sizes = [self._stack]
        for call in ready:
            with suppress(self._ray.exceptions.RayError):
                sizes.append(self._ray.get(call))
        if min(sizes) < self._stack == self._asked:
            warnings.warn(short_of(self._stack), stacklevel=2)
        self._stack = min(sizes)
        return self._stack

    def states(self) -> dict[int, RecordDict] | None:
        """State of the clients that have one, by partition id; None if a worker cannot tell."""
        found = {}
        for connection in self._connections:
            found.update(connection.states)
            nodes = [node for node, kept in connection.journal.items() if kept]
            if not nodes:
                continue
            try:
                states = self._ray.get(connection.actor.states.remote(nodes), timeout=PROMPT)
            except self._ray.exceptions.RayError:
                return None
            found.update(zip(nodes, flower_messages.from_wire(states), strict=True))
        return {node - FIRST_NODE: state for node, state in found.items() if state}

    def states_at_hand(self) -> dict[int, RecordDict] | None:
        """States of the clients, if no worker must be asked."""
        kept = (kept for connection in self._connections for kept in connection.journal.values())
        return None if any(kept) else self.states()

    def restore(self, states: Mapping[int, RecordDict]) -> None:
        """Put clients back into `states`."""
        for partition, state in states.items():
            self._connections[self._home[partition]].states[FIRST_NODE + partition] = state
        for connection in self._connections:
            connection.open()

    def cpu_seconds(self) -> float:
        """CPU time of this process and of all actors, not of Ray's own processes.

        An actor that does not answer at once (hangs, restarts) counts with its last number.
        """
        calls = [connection.actor.cpu_seconds.remote() for connection in self._connections]
        ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=PROMPT)
        for connection, call in zip(self._connections, calls, strict=True):
            try:
                seconds = self._ray.get(call) if call in ready else connection.last_seconds
            except self._ray.exceptions.RayError:
                continue
            if seconds < connection.last_seconds:  # a restarted actor begins at zero again
                connection.past_seconds += connection.last_seconds
            connection.last_seconds = seconds
        told = sum(one.past_seconds + one.last_seconds for one in self._connections)
        return time.process_time() + told

    def close(self) -> None:
        """Let go of the run: its threads, states and data."""
        for connection in self._connections:
            connection.close()


@validated(frozen=True, config=STRICT)
class Ray:
    """Clients in Ray actors, each always in the same one; `workers` 0 takes one per core.

    `address` joins a running Ray cluster ("auto": the one on this machine) instead of
    starting Ray here; workers are then spread over its nodes.
    """

    workers: Annotated[int, Field(ge=0)] = 0
    address: str = ""

    @contextmanager
    def session(self, app: ClientApp, device: str = "cpu") -> Iterator[Session]:
        """Start Ray, or join it, and start the actors; with GPUs one for each of them.

        A Ray that already runs in this process, as in a notebook, is used and left running.
        """
        import ray

        grids: list[RayGrid] = []
        gpus = workers_for(device)
        if gpus and self.workers > gpus:
            raise EngineError(too_many(self.workers, gpus, device))
        takes_gpus = device in {"auto", "cuda"} and gpus > 0
        with self._running(gpus, takes_gpus) as (count, is_ours):
            actor = ray.remote(num_cpus=1, num_gpus=int(takes_gpus), scheduling_strategy="SPREAD")(
                ClientActor
            )
            posts = [Post(partial(actor.remote, app), ray.kill) for _ in range(count)]
            wait_for(posts)

            def begin(worker: Worker, clients: int, timeout: float) -> RayGrid:
                for grid in grids:
                    grid.close()
                wait_for(posts)  # one may have died with the last run
                grids[:] = [RayGrid(posts, worker, clients, timeout)]
                return grids[0]

            try:
                yield begin
            finally:
                for grid in grids:
                    grid.close()
                if not is_ours:
                    end([post.actor for post in posts])

    @contextmanager
    def _running(self, gpus: int, takes_gpus: bool) -> Iterator[tuple[int, bool]]:
        """See to it that Ray runs; yield the number of workers, and whether it ends with them.

        With `gpus` there are no more workers than these; `takes_gpus` says that Ray hands them
        out, one to each.
        """
        keep_freed_memory()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        try:
            check_folder(Path.cwd())  # which Ray makes its workers look into first
        except ClashError as error:
            raise EngineError(f"{error}; or take engine=inline()") from None
        if ray.is_initialized():
            if self.address:
                raise EngineError("a Ray runs in this process already; leave out its address")
            yield self._free_workers(gpus, takes_gpus), False
            return
        quiet = {"log_to_driver": False, "logging_level": "error"}
        count = self.workers or gpus or available_cores()
        if self.address:
            try:
                knock(self.address)
                ray.init(address=self.address, **quiet)
            except (OSError, ValueError) as error:
                raise EngineError(f"no Ray cluster at {self.address!r}: {reason(error)}") from None
        else:
            # "local": of our own, even on a machine that belongs to a cluster
            folder = temporary_folder()
            try:
                ray.init(
                    "local",
                    num_cpus=count,
                    num_gpus=gpus if takes_gpus else None,
                    include_dashboard=False,
                    _temp_dir=folder,
                    **quiet,
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise EngineError(f"Ray does not start: {reason(error)}") from None
        try:
            yield (self._free_workers(gpus, takes_gpus) if self.address else count), True
        finally:
            ray.shutdown()

    def _free_workers(self, gpus: int, takes_gpus: bool) -> int:
        """Return how many workers the running Ray has room for; EngineError if too few."""
        import ray

        found = ray.available_resources()
        free = int(found.get("CPU", 0))
        most = min(free, int(found.get("GPU", 0))) if takes_gpus else min(free, gpus or free)
        count, each = self.workers or most, "a CPU and a GPU" if takes_gpus else "a CPU"
        if not 1 <= count <= most:
            raise EngineError(f"{count} workers need {each} each, Ray has {most} free")
        return count


@contextmanager
def _by_value(modules: Sequence[str]) -> Iterator[None]:
    """Let classes of the user's own files travel with their code, as those of a notebook do."""
    from ray import cloudpickle

    found = travelling(modules)
    for module in found:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in found:
            cloudpickle.unregister_pickle_by_value(module)


def _balance(sizes: Sequence[int], actors: int) -> list[int]:
    """Assign clients to actors: largest first, always to the least loaded, ties to the first."""
    load, home = [0] * actors, [0] * len(sizes)
    for client in sorted(range(len(sizes)), key=lambda client: -sizes[client]):
        home[client] = load.index(min(load))
        load[home[client]] += sizes[client] + 1
    return home
