"""Base of our own engines: a Flower grid over virtual clients that stay in memory."""

from __future__ import annotations

import signal
import threading
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any, Protocol, runtime_checkable

from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from simulations.clients.client_app import ResidentContext
from simulations.clients.pool import ClientPool
from simulations.clients.worker import Worker
from simulations.data.ragged import held_by
from strategies.server import flower_private
from strategies.server.participants import RollCall

FIRST_NODE = 2
"""Node id of partition 0; Flower reserves lower ones."""


class EngineError(ValueError):
    """Workers that cannot be started, and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"engine: {reason}")


class WorkersLost(EngineError):
    """Workers of a run in progress that die again and again, and why."""


class Session(Protocol):
    """Runs one experiment after the other on workers that are started once."""

    def __call__(self, worker: Worker, clients: int, timeout: float) -> LocalGrid:
        """Return a grid of `clients` fresh virtual clients that may take `timeout` s a message."""
        ...


@runtime_checkable
class Engine(Protocol):
    """What runs the clients."""

    def session(self, app: ClientApp, device: str = "cpu") -> AbstractContextManager[Session]:
        """Start the workers, and stop them in the end; `device` is the experiment's."""
        ...


class LocalGrid(Grid):
    """A Flower grid over virtual clients whose node id is their partition id plus FIRST_NODE.

    Parameters
    ----------
    worker : Worker
        Has the data of all clients, so that nobody needs to ask them what they hold.
    """

    def __init__(self, worker: Worker, clients: int) -> None:
        self._nodes = range(FIRST_NODE, FIRST_NODE + clients)
        self._data = worker.data
        self._run = flower_private.some_run()
        self._ids = count(1)
        flower_private.be_in_a_run()

    @abstractmethod
    def cpu_seconds(self) -> float:
        """CPU time of the server and of all workers so far."""

    def stack(self) -> int:
        """How many clients' heads run as one now; 0 where trials decide, on a CPU."""
        return 0

    @abstractmethod
    def states(self) -> dict[int, RecordDict] | None:
        """State between two rounds of the clients that have one, by partition id; None if lost."""

    def states_at_hand(self) -> dict[int, RecordDict] | None:
        """States as :meth:`states` tells them; None where somebody else must be asked first."""
        return self.states()

    @abstractmethod
    def restore(self, states: Mapping[int, RecordDict]) -> None:
        """Put clients back into the `states` that a grid like this has reported."""

    def describe(self, with_labels: bool) -> RollCall:
        """Return what all clients hold; samples of each class only `with_labels`."""
        nodes = dict(enumerate(self._nodes))
        return RollCall(nodes, *held_by(self._data, with_labels))

    def set_run(self, run: flower_private.Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> flower_private.Run:
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

    def _accept(self, message: Message) -> str:
        """Give a message an id, as a SuperLink would."""
        message_id = f"{next(self._ids):064x}"
        flower_private.set_message_id(message, message_id)
        return message_id


def stack_of(grid: Grid) -> int:
    """How many clients' heads run as one on a grid; Flower's own runs each alone."""
    return grid.stack() if isinstance(grid, LocalGrid) else 1


class Contexts(dict[int, ResidentContext]):
    """Virtual clients by node id, made fresh when they are first asked for.

    Parameters
    ----------
    worker : Worker
        Serves all of them.
    """

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._pool = ClientPool(worker)

    def __missing__(self, node: int) -> ResidentContext:
        """Make a client; KeyError if there is no such node."""
        partition = node - FIRST_NODE
        if not 0 <= partition < len(self._pool.worker.data.partitions):
            raise KeyError(node)
        return self.setdefault(node, ResidentContext(node, partition, self._pool))


def answer(app: ClientApp, message: Message, context: ResidentContext, timeout: float) -> Message:
    """Let a client handle a message; its errors become a reply, and never end the run."""
    try:
        with deadline(timeout):
            return app(message, context)
    except (Exception, SystemExit) as error:
        return failure(message, error)


def failure(message: Message, error: BaseException) -> Message:
    """Reply that a client could not handle `message`."""
    return Message(Error(1, f"{type(error).__name__}: {error}"), reply_to=message)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`; only the main thread can be interrupted.

    Where the system has no alarm, as on Windows, there is no deadline.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise TimeoutError(f"no reply within {seconds:g} seconds")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
