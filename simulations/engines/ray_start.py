"""Starting Ray and its workers, and ending them: nothing here waits for ever."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from simulations.clients.worker import Worker
from simulations.engines.local_grid import EngineError
from simulations.engines.ray_recovery import (
    MOST_DEATHS,
    Post,
    causes_of_death,
    is_death,
    reason,
)

PROMPT = 10.0
"""Seconds within which an idle worker answers a question that is not worth waiting for."""

START_SECONDS = 600.0
"""Within which workers must have started; a busy machine takes minutes."""

LONGEST_FOLDER = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
"""Bytes of the folder in which Ray makes sockets, whose paths may have 107 (unix(7))."""


def wait_for(posts: Sequence[Post]) -> None:
    """Wait until all workers are there; one that has died is started again, not too often.

    They import for seconds: the timeout of a message is for clients, not for Python.

    Raises
    ------
    EngineError
        They cannot be started, and why.
    """
    import ray

    deadline = time.monotonic() + START_SECONDS
    calls = {post.actor.cpu_seconds.remote(): post for post in posts}
    deaths = 0
    while calls:
        ready, _ = ray.wait([*calls], timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise EngineError(
                f"{len(calls)} of {len(posts)} workers did not start within {START_SECONDS:g} s; "
                "is there a free CPU for each, and memory?"
            )
        post = calls.pop(ready[0])
        try:
            ray.get(ready[0])
        except ray.exceptions.RayError as error:
            deaths += 1
            if not is_death(error):
                raise EngineError(f"a worker cannot start: {reason(error)}") from None
            if deaths >= MOST_DEATHS:
                raise EngineError(causes_of_death(deaths, error)) from None
            post.replace()
            calls[post.actor.cpu_seconds.remote()] = post


def too_many(workers: int, gpus: int, device: str) -> str:
    """Say that more workers are asked for than there are GPUs."""
    if device not in {"auto", "cuda"}:
        return f"device={device!r} is one GPU, for one worker; take ray(workers=1), or inline()"
    return (
        f"{workers} workers need a GPU each, and there are {gpus}; take ray(workers={gpus}), or "
        "ray() for one per GPU"
    )


def shared(worker: Worker) -> Any:
    """Put what all workers need into Ray's object store; EngineError if it does not fit."""
    import ray

    try:
        return ray.put(worker)
    except (ray.exceptions.RayError, OSError) as error:
        raise EngineError(
            f"the data and the model do not fit into Ray's object store ({reason(error)}); "
            "give it more memory, or take engine='inline()'"
        ) from None


def end(actors: Sequence[Any]) -> None:
    """Kill actors, and wait until their CPUs can be had again, for the next run on this Ray."""
    import ray

    before = ray.available_resources().get("CPU", 0)
    for actor in actors:
        ray.kill(actor)
    deadline = time.monotonic() + PROMPT
    while ray.available_resources().get("CPU", 0) < before + len(actors):
        if time.monotonic() > deadline:  # others have taken them
            break
        time.sleep(0.05)


def temporary_folder() -> str | None:
    """Return where Ray's sockets fit; nothing if that is where Ray puts them anyway.

    Raises
    ------
    EngineError
        The folder for temporary files has too long a name, and there is no other.
    """
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(usual)) <= LONGEST_FOLDER or not hasattr(os, "getuid"):
        return None
    for short in ("/tmp", "/var/tmp"):
        if os.access(short, os.W_OK | os.X_OK):
            return f"{short}/ray-{os.getuid()}"
    raise EngineError(
        f"TMPDIR {usual!r} is too long for Ray, whose sockets lie below it; set RAY_TMPDIR to a "
        f"folder of at most {LONGEST_FOLDER} bytes"
    )


def knock(address: str) -> None:
    """Raise OSError if nobody listens at host:port; Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if "://" not in address and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()
