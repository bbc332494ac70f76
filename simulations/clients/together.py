"""Several clients of one process computed as one, ahead of their own turn; the same bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from fl_split.codecs import Mixed
from fl_split.exchange.records import GRADIENT
from fl_split.exchange.stacked import StackedForward, head_gradients, smash_together
from simulations.clients.client import Client
from simulations.clients.client_app import Answering


def backward_stacks(answering: Sequence[Answering]) -> Iterator[list[Answering]]:
    """Yield the clients of a stack whose gradients have all come, of a filled-up one some."""
    by_forward: dict[StackedForward, dict[int, Answering]] = {}
    for one in answering:
        if one.client.slot and one.record.action == GRADIENT:
            slot = one.client.slot
            by_forward.setdefault(slot.forward, {})[slot.number] = one
    for forward, members in by_forward.items():
        if len(members) == forward.members or forward.is_fixed:
            yield [members[number] for number in sorted(members)]


def forward_stacks(answering: Sequence[Answering]) -> Iterator[list[Answering]]:
    """Yield clients of one cut and size of batch, where a stack is wanted for that size."""
    by_size: dict[tuple[int, int], list[Answering]] = {}
    for one in answering:
        if not one.has_answer and one.client.has_batch():
            key = one.client.batch_samples, id(one.client.worker)  # which serves heads of one cut
            by_size.setdefault(key, []).append(one)
    for (samples, _), alike in by_size.items():
        if len(alike) > 1 and alike[0].client.worker.stacks.of(samples):
            yield from (stack for stack in _cut(alike) if len(stack) > 1)


def _cut(answering: Sequence[Answering]) -> list[list[Answering]]:
    """Cut clients of one worker into stacks of its present size."""
    size = answering[0].client.worker.stacks.size
    return [list(answering[i : i + size]) for i in range(0, len(answering), size)]


def backward_together(stack: Sequence[Answering]) -> None:
    """Compute the heads' gradients; :meth:`Client.backward` then has them ready."""
    clients = [one.client for one in stack]
    gradients = [one.client.link.read(one.record.sent(), one.client.at) for one in stack]
    slots = [client.slot for client in clients if client.slot]
    graphs = [client.graph for client in clients if client.graph]
    stacks = clients[0].worker.stacks
    found: Tensor | None = None
    with suppress(torch.OutOfMemoryError):
        found = head_gradients(slots, graphs, gradients)
    if found is None:  # outside of the handler, whose traceback would hold what failed
        del slots, graphs
        for client in clients:
            client.release()  # so that each repeats its forward
        stacks.halve()
        return
    stacks.count(together=len(clients))
    for client, gradient in zip(clients, found, strict=True):
        client.ready = gradient


def forward_together(stack: Sequence[Answering]) -> None:
    """Compute what the clients send; :meth:`Client.forward` then has it ready.

    Where memory is short the stack is halved, and the forward repeated.
    """
    stacks = stack[0].client.worker.stacks
    with suppress(torch.OutOfMemoryError):
        _forward(stack)
        return
    # Not in the handler of the error, whose traceback would hold what failed.
    for one in stack:
        one.client.release()
    stacks.halve()
    for part in _cut(stack) if stacks.size > 1 else []:
        if len(part) > 1:
            forward_together(part)


def _forward(stack: Sequence[Answering]) -> None:
    clients: list[Client] = [one.client for one in stack]
    worker, samples = clients[0].worker, clients[0].batch_samples
    stacked = worker.stacks.of(samples)
    assert stacked is not None
    for client in clients:
        client.release()
    pixels, labels, mixed = _batches(clients)
    copies = worker.stacks.size if worker.stacks.is_filled_up else len(clients)
    with worker.measure(copies, samples):
        found = smash_together(
            stacked,
            [client.head for client in clients],
            worker.link.codec,
            pixels,
            labels,
            worker.data.num_classes,
            [client.at for client in clients],
            mixed,
        )
    # All or none: one slot keeps the graph of the whole stack.
    has_room = worker.graphs.has_room(len(clients) * worker.graph_bytes(samples))
    for client, (payload, slot) in zip(clients, found, strict=True):
        if has_room:
            client.keep(payload, samples, slot)
        client.ready = payload


def _batches(clients: Sequence[Client]) -> tuple[Tensor, Tensor, list[Mixed | None]]:
    """Return images and labels client by client, and what each one's labels are mixed with."""
    worker = clients[0].worker
    if not worker.augment:
        rows = np.concatenate([client.rows() for client in clients])
        return *worker.data.batch(rows, worker.device), [None] * len(clients)
    batches = [client.batch() for client in clients]
    pixels = torch.cat([batch.pixels for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    return pixels, labels, [batch.mixed for batch in batches]
