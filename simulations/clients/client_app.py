"""Flower ClientApp: what a virtual client answers to each message.

All that a client is between two messages lies in ``context.state``, so any process may serve
any message; an engine that serves a client always from one process may keep it live.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl_split.exchange.records import CPU_SECONDS, EXITS, HEAD, HELD, TAIL, Record, Weights
from simulations.clients import kept_exits
from simulations.clients.client import Client
from simulations.clients.pool import ClientPool
from simulations.clients.state import ClientState
from strategies.server import flower_messages


class ResidentContext(Context):
    """A Flower context whose client stays live between messages.

    Within a round the client is kept as it is instead of going through ``state`` after each
    message; between rounds nothing but ``state`` is left of it.
    """

    def __init__(self, node_id: int, partition: int, pool: ClientPool) -> None:
        super().__init__(0, node_id, {"partition-id": partition}, RecordDict(), {})
        self.pool = pool
        self.client: Client | None = None

    def snapshot(self) -> RecordDict:
        """Return ``state`` as it would be, had the client not been kept live."""
        if self.client is not None:
            _write(self.client, self.state)
        return self.state


class Answering:
    """A message of an exchange that is being answered: first :meth:`receive`, then :meth:`send`.

    What several clients of one process do in between, an engine may compute for all of them
    at once. After an error :meth:`fail` must be called.
    """

    def __init__(self, message: Message, context: Context, pool: ClientPool) -> None:
        self.message, self.context, self.pool = message, context, pool
        self.record = flower_messages.read(message)
        live = context.client if isinstance(context, ResidentContext) else None
        self.is_live = live is not None
        self.client = live or _restored(context, pool)
        self.exchange = pool.worker.exchange
        self.cpu_seconds = 0.0
        self._answer: Record | None = None

    def receive(self) -> None:
        """Let the client take what came."""
        began = time.thread_time()
        self._answer = self.exchange.receive(self.client, self.record)
        self.cpu_seconds += time.thread_time() - began

    def show(self) -> None:
        """Let the client show what it keeps; of a head or a model it then is in no round."""
        client, question = self.client, self.record.action
        if question == flower_messages.OWN_EXITS:
            exits = kept_exits.kept(client.memory, self.pool.worker.head)
            self._answer = Record(question, weights={EXITS: Weights.of(exits.cpu().numpy())})
            return
        client.stop()
        has_kept = client.keeps_head
        client.keep_head()
        weights = {HEAD: client.head.numpy()}
        if question == flower_messages.OWN_MODEL:
            weights[TAIL] = client.own_tail()
        shown = {name: Weights.of(vector) for name, vector in weights.items()}
        self._answer = Record(question, weights=shown)
        client.keeps_head = has_kept  # what all start with is no state of a client's own

    @property
    def has_answer(self) -> bool:
        """Whether what came has been answered already."""
        return self._answer is not None

    def send(self) -> Message:
        """Return the client's answer, and leave the client as the next message needs it."""
        began = time.thread_time()
        answer = self._answer or self.exchange.send(self.client)
        seconds = self.cpu_seconds + time.thread_time() - began
        reply = flower_messages.reply(
            self.message, replace(answer, numbers={**answer.numbers, CPU_SECONDS: seconds})
        )
        self._leave()
        return reply

    def fail(self) -> None:
        """Leave the client as if its state had been restored."""
        self.client.release()
        if not self.is_live:
            self.pool.take_back(self.client)

    def _leave(self) -> None:
        client, context = self.client, self.context
        if isinstance(context, ResidentContext):
            context.client = None if client.place is None else client
            if context.client:
                return
        _write(client, context.state)
        self.pool.take_back(client)


class SplitApp(ClientApp):
    """The app of all virtual clients.

    Parameters
    ----------
    pool_of : Callable, optional
        Gives the clients of a process, for contexts that are not resident.
    """

    def __init__(self, pool_of: Callable[[Context], ClientPool] | None = None) -> None:
        super().__init__()
        self._pool_of = pool_of
        for question in (flower_messages.SAMPLE_COUNT, flower_messages.LABEL_COUNTS):
            self.query(question)(self._describe)
        for question in flower_messages.OWN:
            self.query(question)(self._show)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; every action of an exchange, also of one that came later, is one."""
        with self._pool(context).worker.computing():
            answering = self.open(message, context)
            if answering is None:
                return super().__call__(message, context)
            return _finish(answering, answering.receive)

    def open(self, message: Message, context: Context) -> Answering | None:
        """Begin to answer a message of an exchange; None for what is answered in one go."""
        if not message.metadata.message_type.startswith(flower_messages.TRAIN):
            return None
        return Answering(message, context, self._pool(context))

    def _pool(self, context: Context) -> ClientPool:
        if isinstance(context, ResidentContext):
            return context.pool
        assert self._pool_of is not None, "only resident contexts bring their clients along"
        return self._pool_of(context)

    def _describe(self, message: Message, context: Context) -> Message:
        """Say which partition this node holds and how many samples, if asked of each class."""
        partition, data = _partition(context), self._pool(context).worker.data
        rows = data.partitions[partition]
        found: dict[str, Any] = {flower_messages.PARTITION: partition, HELD: len(rows)}
        question = flower_messages.read(message).action
        if question == flower_messages.LABEL_COUNTS:
            found[flower_messages.NUM_LABELS] = data.label_counts(rows)
        return flower_messages.reply(message, Record(question, numbers=found))

    def _show(self, message: Message, context: Context) -> Message:
        """Show the client's own head, model or exits, for evaluation; at first the initial ones."""
        answering = Answering(message, context, self._pool(context))
        return _finish(answering, answering.show)


def _finish(answering: Answering, take: Callable[[], None]) -> Message:
    try:
        take()
        return answering.send()
    except BaseException:
        answering.fail()
        raise


def _restored(context: Context, pool: ClientPool) -> Client:
    client, state = pool.lend(_partition(context)), ClientState.read(context.state)
    if state:
        client.restore(state)
    return client


def _write(client: Client, state: RecordDict) -> None:
    """Write all that the next message needs into a context's state."""
    state.clear()
    if found := client.save():
        found.write(state)


def _partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


app = SplitApp()
"""The app of the engines of our own, whose contexts are resident."""
