"""Messages to several clients of one process, answered together where that is faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Message
from flwr.clientapp import ClientApp

from simulations.clients.client_app import Answering, ResidentContext
from simulations.clients.together import (
    backward_stacks,
    backward_together,
    forward_stacks,
    forward_together,
)
from simulations.engines.local_grid import answer, deadline, failure


def answer_together(
    app: ClientApp, parts: Sequence[tuple[Message, ResidentContext]], timeout: float
) -> list[Message]:
    """Answer messages to different clients, each as :func:`answer` would, to the bit.

    Heads of several clients run as one where that is faster; a client that fails there is tried
    again alone. Messages stay unanswered once half of the timeout is over, and from the second
    message to one client on: finished replies must not wait for a client that hangs.
    """
    with parts[0][1].pool.worker.computing():
        return _answered(app, parts, timeout)


def _answered(
    app: ClientApp, parts: Sequence[tuple[Message, ResidentContext]], timeout: float
) -> list[Message]:
    began = time.monotonic()
    replies: dict[int, Message] = {}
    opened: dict[int, Answering] = {}

    def attempt(index: int, work: Callable[[], Message | None]) -> None:
        """Do a part of the answer; note the reply, or the failure."""
        is_late = time.monotonic() - began > timeout
        try:
            with deadline(timeout / 4 if is_late else timeout):
                reply = work()
        except (Exception, SystemExit) as error:
            opened.pop(index).fail()
            replies[index] = failure(parts[index][0], error)
        else:
            if reply is not None:
                replies[index] = reply

    def is_enough(index: int) -> bool:
        """Tell whether the messages from `index` on must wait for the next call."""
        return index > 0 and time.monotonic() - began > timeout / 2

    seen: set[int] = set()
    for index, (message, context) in enumerate(parts):
        if is_enough(index) or context.node_id in seen:
            break
        seen.add(context.node_id)
        found = _opened(app if len(parts) > 1 else None, message, context)
        if isinstance(found, Answering):
            opened[index] = found
        else:
            replies[index] = found or answer(app, message, context, timeout)
    _compute(backward_stacks, backward_together, [*opened.values()], timeout)
    for index in [*opened]:  # which may train for a whole round
        if is_enough(index):
            opened.pop(index).fail()
        else:
            attempt(index, opened[index].receive)
    _compute(forward_stacks, forward_together, [*opened.values()], timeout)
    for index in [*opened]:
        attempt(index, opened[index].send)
    first_left = next(index for index in range(len(parts) + 1) if index not in replies)
    return [replies[index] for index in range(first_left)]


def _opened(
    app: ClientApp | None, message: Message, context: ResidentContext
) -> Answering | Message | None:
    """Begin to answer a message in parts; None if `app` cannot, a failure if that fails."""
    open_ = getattr(app, "open", None)
    try:
        return open_(message, context) if open_ else None
    except Exception as error:
        return failure(message, error)


def _compute(
    find: Callable[[Sequence[Answering]], Iterable[list[Answering]]],
    work: Callable[[Sequence[Answering]], None],
    answering: Sequence[Answering],
    timeout: float,
) -> None:
    """Compute together what can be; each client is charged its share of the CPU time."""
    try:
        stacks = list(find(answering))
    except Exception:
        return  # let each of them fail, or not, alone
    for stack in stacks:
        began = time.thread_time()
        try:
            with deadline(timeout / 4):
                work(stack)
        except (Exception, SystemExit):
            for one in stack:
                one.client.ready = None
            continue
        seconds = (time.thread_time() - began) / len(stack)
        for one in stack:
            one.cpu_seconds += seconds
