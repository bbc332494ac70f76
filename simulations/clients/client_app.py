"""Flower ClientApp: what a virtual client answers to each action.

A handler is a function of (message, context): all that a client is between two messages
lies in ``context.state``, so any process may serve any message.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
    UserConfigValue,
)
from flwr.clientapp import ClientApp

from simulations.clients.client import Client, ResidentContext
from simulations.clients.half_way import finish_forward
from simulations.clients.worker import Worker
from simulations.engines.batching import Plan, finish
from strategies.server import messages


class SplitApp(ClientApp):
    """A Flower app that also tells how it answers, so that an engine may answer many at once."""

    def plan(self, message: Message, context: Context) -> Plan | None:
        """Return what answers `message` in requests; None for what is answered in one go."""
        return (
            exchange(message, context) if message.metadata.message_type == messages.STEP else None
        )


app = SplitApp()


@app.query("roll_call")
def roll_call(message: Message, context: Context) -> Message:
    """Say which partition this node holds and how many samples, if asked of each class."""
    partition, data = _partition(context), _worker(context).data
    rows = data.partitions[partition]
    found: dict[str, Any] = {messages.PARTITION: partition, messages.NUM_EXAMPLES: len(rows)}
    if messages.SETTINGS in message.content:
        found[messages.NUM_LABELS] = data.label_counts(rows)
    return _reply(message, found)


@app.query("report")
def report(message: Message, context: Context) -> Message:
    """Show the client's own head, or model, for evaluation; the initial one if it has none yet."""
    with _client(context) as client:
        if not client.has_own_head:
            client.begin(_partition(context), 0, None)
        record = messages.weights(head=client.head.numpy())
        if messages.SETTINGS in message.content:  # the tail too
            record.update(messages.weights(tail=client.present_tail().weights))
        client.sit_out()
        return _reply(message, {}, record)


@app.train("step")
def step(message: Message, context: Context) -> Message:
    """Enter a round or learn from a cut gradient; answer with the next payload or the head."""
    return finish(exchange(message, context))


def exchange(message: Message, context: Context) -> Plan:
    """Do that, with the head's forward and backward left to whoever drives the plan."""
    started = time.thread_time()
    arrays = message.content.array_records
    with _client(context) as client:
        if messages.SETTINGS in message.content:
            head = arrays.get(messages.WEIGHTS)
            client.begin(
                _partition(context),
                _round(message),
                None if head is None else messages.numbers(head[messages.HEAD]),
                float(str(_settings(message).get(messages.SHARE, 1.0))),
            )
        if messages.PAYLOAD in arrays:
            output = client.worker.downlink.unpack(messages.unwrap(arrays[messages.PAYLOAD]))
            back, loss = finish_forward(client, output)
            reference = client.batch_samples * client.head.module.output_bytes
            work = {**_work(0, 0, reference, started), messages.LOSS: loss}
            return _reply(message, work, messages.wrap(back), messages.GRADIENT)
        if messages.GRADIENT in arrays:
            gradient = client.worker.downlink.unpack(messages.unwrap(arrays[messages.GRADIENT]))
            paused = time.thread_time()
            result, seconds = yield client, gradient
            started += time.thread_time() - paused - seconds
            client.learn(result)
        if client.has_batch():
            paused = time.thread_time()
            payload, seconds = yield client, None
            started += time.thread_time() - paused - seconds
            samples = client.batch_samples
            work = _work(samples, 1, samples * client.head.module.smashed_bytes, started)
            return _reply(message, work, messages.wrap(payload), messages.PAYLOAD)
        record = None if client.has_own_head else messages.weights(head=client.head.numpy())
        return _reply(message, _work(0, 0, 0, started, client.num_samples), record)


@app.train("local")
def local(message: Message, context: Context) -> Message:
    """Train a whole model for one round: the one that came, or the client's own."""
    started = time.thread_time()
    model = message.content.array_records.get(messages.WEIGHTS, ArrayRecord())
    mu = float(str(_settings(message)[messages.MU]))
    with _client(context) as client:
        weights = {name: messages.numbers(vector) for name, vector in model.items()}
        client.begin(_partition(context), _round(message), weights.get(messages.HEAD))
        tail, loss, samples = client.train_locally(weights.get(messages.TAIL), mu)
        work = _work(samples, client.steps_taken, 0, started, client.num_samples)
        is_own = client.has_own_head
        record = None if is_own else messages.weights(head=client.head.numpy(), tail=tail)
        return _reply(message, {**work, messages.LOSS: loss}, record)


@contextmanager
def _client(context: Context) -> Iterator[Client]:
    """Give the client of `context`: live if it is resident, else through its state."""
    worker = _worker(context)
    live = context.client if isinstance(context, ResidentContext) else None
    client = live or worker.lend()
    if live is None:
        client.restore(context.state)
    try:
        yield client
    except BaseException:
        worker.release(client)  # as if its state had been restored
        if live is None:
            worker.give_back(client)
        raise
    if isinstance(context, ResidentContext):
        context.client = client if client.has_batch() else None
        if context.client:
            return
    client.save(context.state)
    worker.give_back(client)


def _worker(context: Context) -> Worker:
    if isinstance(context, ResidentContext):
        return context.worker
    return _build(tuple(sorted(context.run_config.items())))


@lru_cache(maxsize=1)
def _build(run_config: tuple[tuple[str, UserConfigValue], ...]) -> Worker:
    torch.set_num_threads(1)  # as everywhere: results must not depend on idle cores
    from simulations.runs import setup  # which costs seconds that actors of ours do without
    from simulations.runs.experiment import Experiment

    return setup.prepare(Experiment.from_dict(dict(run_config))).worker()


def _partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _round(message: Message) -> int:
    return int(str(_settings(message)[messages.ROUND]))


def _settings(message: Message) -> ConfigRecord:
    return message.content.config_records[messages.SETTINGS]


def _work(
    samples: int, steps: int, smashed_bytes: int, started: float, num_examples: int = 0
) -> dict[str, float]:
    """What this reply stands for; `num_examples` weights the client where it ends its round."""
    return {
        messages.NUM_EXAMPLES: num_examples,
        messages.NUM_SAMPLES: samples,
        messages.NUM_STEPS: steps,
        messages.SMASHED_BYTES: smashed_bytes,
        messages.CPU_SECONDS: time.thread_time() - started,
    }


def _reply(
    message: Message,
    metrics: Mapping[str, Any],
    record: ArrayRecord | None = None,
    name: str = messages.WEIGHTS,
) -> Message:
    content = RecordDict({messages.METRICS: MetricRecord(dict(metrics))})
    if record is not None:
        content[name] = record
    return Message(content, reply_to=message)
