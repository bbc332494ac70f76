"""Messages to several clients of one process, answered together where that is faster."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from flwr.app import Message
from flwr.clientapp import ClientApp

from fl_split.exchange.stacked import MEMBERS, Run
from fl_split.payload import Payload
from simulations.clients.client import Client, ResidentContext
from simulations.clients.worker import backward_together, forward_together
from simulations.engines.local_grid import answer, deadline, failure

Request = tuple[Client, Payload | None]
"""A client and its cut gradient, for the head's gradient; or None, for its next payload."""

Plan = Generator[Request, Any, Message]
"""A message being answered: yields requests, is sent results with the CPU seconds they took."""


def fulfil(client: Client, gradient: Payload | None) -> tuple[Any, float]:
    """Fulfil one request; return the result and its CPU seconds."""
    began = time.thread_time()
    result = client.forward() if gradient is None else client.backward(gradient)
    return result, time.thread_time() - began


def finish(plan: Plan) -> Message:
    """Answer one message alone."""
    result: Any = None
    while True:
        try:
            request = _advance(plan, result)
        except StopIteration as end:
            return end.value
        try:
            result = fulfil(*request)
        except Exception as error:
            result = error


def _advance(plan: Plan, result: Any) -> Request:
    return plan.throw(result) if isinstance(result, BaseException) else plan.send(result)


def answer_together(
    app: ClientApp, parts: Sequence[tuple[Message, ResidentContext]], timeout: float
) -> list[Message]:
    """Answer messages to different clients, each as :func:`answer` would, to the bit.

    If `app` has plans (see :class:`~simulations.clients.client_app.SplitApp`), the requests of all
    are collected and fulfilled in groups; whatever goes wrong in a group is tried again alone.
    Messages that are left when half of the time for one is over, or from a second one to
    the same client on, are not answered: replies that are there should not wait behind a
    client that hangs.
    """
    began = time.monotonic()
    replies: dict[int, Message] = {}
    plans: dict[int, Plan] = {}
    requests: dict[int, Request] = {}

    def advance(index: int, result: Any) -> None:
        try:
            with deadline(timeout):
                requests[index] = _advance(plans[index], result)
        except StopIteration as end:
            replies[index] = end.value
        except (Exception, SystemExit) as error:
            replies[index] = failure(parts[index][0], error)

    find = getattr(app, "plan", None) if len(parts) > 1 else None
    seen: set[int] = set()
    for index, part in enumerate(parts):
        if (index and time.monotonic() - began > timeout / 2) or part[1].node_id in seen:
            break
        seen.add(part[1].node_id)
        plan = find(*part) if find else None
        if plan is None:
            replies[index] = answer(app, *part, timeout)
        else:
            plans[index] = plan
            advance(index, None)
    while requests:
        results, requests = _fulfil_all(requests, timeout), {}
        for index, result in results.items():
            advance(index, result)
    return [replies[index] for index in sorted(replies)]


def _fulfil_all(requests: dict[int, Request], timeout: float) -> dict[int, Any]:
    """Return results, or the error, by index; a hang leaves others a share of the time."""
    start, results = time.monotonic(), dict[int, Any]()
    try:
        groups = list(_groups(requests))
    except Exception:
        groups = []  # let each of them fail, or not, alone
    for group in groups:
        began = time.thread_time()
        try:
            with deadline(timeout / 4):
                found = _fulfil_group([requests[index] for index in group])
        except (Exception, SystemExit):
            continue
        seconds = (time.thread_time() - began) / len(group)
        results.update((i, (value, seconds)) for i, value in zip(group, found, strict=True))
    for index in sorted(requests.keys() - results.keys()):
        is_late = time.monotonic() - start > timeout
        try:
            with deadline(timeout / 4 if is_late else timeout):
                results[index] = fulfil(*requests[index])
        except (Exception, SystemExit) as error:
            results[index] = error
    return dict(sorted(results.items()))


def _groups(requests: dict[int, Request]) -> Iterator[list[int]]:
    """Yield what can be fulfilled together: batches of one size, or all seats of one run."""
    alike: dict[Any, list[tuple[int, int]]] = {}
    for index, (client, gradient) in requests.items():
        if gradient is None:
            alike.setdefault(client.batch_samples, []).append((index, index))
        elif client.seat:
            alike.setdefault(client.seat.run, []).append((client.seat.number, index))
    for key, ordered in alike.items():
        indices = [index for _, index in sorted(ordered)]
        worker = requests[indices[0]][0].worker
        if isinstance(key, Run):
            if len(indices) == key.members:
                yield indices
        elif len(indices) > 1 and worker.grouped(key):
            parts = [indices[i : i + MEMBERS] for i in range(0, len(indices), MEMBERS)]
            yield from (part for part in parts if len(part) > 1)


def _fulfil_group(requests: Sequence[Request]) -> list[Any]:
    clients = [client for client, _ in requests]
    gradients = [gradient for _, gradient in requests if gradient is not None]
    if gradients:
        return backward_together(clients, gradients)
    return forward_together(clients)
