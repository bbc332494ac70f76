"""The halves of a run whose clients are cut at several places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fl_split.exchange.stand_in import Shallower
from fl_split.models.cut import Head, Tail
from simulations.runs.cut_laws import Cut, cuts_of
from simulations.runs.demand import client_bytes
from simulations.runs.experiment import Experiment
from simulations.runs.trials import remembered_bytes


def split(e: Experiment, module: nn.Module) -> tuple[Head, Tail]:
    """Cut the model of a run where the deepest of its clients is cut.

    Raises
    ------
    ValueError
        A cut leaves nothing on one of its two sides, or names no stage.
    """
    halves = [_cut(e, module, cut) for cut in dict.fromkeys(_cuts(e))]
    return max(halves, key=lambda both: both[0].num_stages)


def shallower(e: Experiment, module: nn.Module, deepest: Head) -> dict[int, Shallower]:
    """Return where clients are cut that are not cut where the `deepest` head ends, by client.

    Raises
    ------
    ValueError
        What this run wants does not work with cuts of different depth; the message says what.
    """
    found: dict[Cut, Shallower | None] = {}
    cuts = _cuts(e)
    if len({*cuts}) == 1:
        return {}
    for cut in dict.fromkeys(cuts):
        head, _ = _cut(e, module, cut)
        if head.num_stages == deepest.num_stages or not e.parts.strategy.sends_smashed_data:
            found[cut] = None
            continue
        _check(e, deepest)
        _, middle = e.parts.model.split(module, cut, deepest.num_stages)
        try:
            found[cut] = Shallower.of(head, middle, deepest)
        except ValueError as error:
            raise ValueError(f"cut: with cuts of different depth, {error}; cut elsewhere") from None
    by_client = {client: found[cut] for client, cut in enumerate(cuts)}
    return {client: one for client, one in by_client.items() if one}


def client_bytes_of(
    e: Experiment,
    deepest: Head,
    tail: Tail,
    places: Mapping[int, Shallower],
    sizes: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Estimate the memory of each client (clients,), of `sizes` samples, in bytes."""
    exchange = e.parts.strategy.exchange(deepest)

    def needed(head: Head) -> int:
        return client_bytes(head, tail, e.batch_size, exchange)

    return _by_client(e, deepest, places, needed) + remembered_of(e, deepest, places, sizes)


def remembered_of(
    e: Experiment, deepest: Head, places: Mapping[int, Shallower], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return bytes that a codec makes each side remember of clients (clients,) of `sizes` samples.

    That is when every sample has been sent.
    """

    def of_sample(head: Head) -> int:
        sends = e.parts.strategy.sends_smashed_data
        return remembered_bytes(e.parts.codec, head, 1) if sends else 0

    return sizes * _by_client(e, deepest, places, of_sample)


def _by_client(
    e: Experiment,
    deepest: Head,
    places: Mapping[int, Shallower],
    of_head: Callable[[Head], int],
) -> NDArray[np.int64]:
    """Return a number of each client's head; each head is asked once."""
    heads = [places[k].head if k in places else deepest for k in range(e.clients)]
    known = {head: of_head(head) for head in dict.fromkeys(heads)}
    return np.array([known[head] for head in heads], dtype=np.int64)


def notes(places: Mapping[int, Shallower], clients: int, deepest: Head) -> list[str]:
    """Say how many clients are cut where, if it differs."""
    if not places:
        return []
    counts = [f"{len(k)} after {cut}" for cut, k in by_cut(places, clients, deepest).items()]
    return [f"cuts: {', '.join(counts)} stages; the server trains what is in between"]


def by_cut(places: Mapping[int, Shallower], clients: int, deepest: Head) -> dict[int, list[int]]:
    """Return the clients of each number of stages, the shallowest first."""
    found: dict[int, list[int]] = {}
    for client in range(clients):
        head = places[client].head if client in places else deepest
        found.setdefault(head.num_stages, []).append(client)
    return dict(sorted(found.items()))


def _cuts(e: Experiment) -> list[Cut]:
    try:
        return cuts_of(e.cut, e.clients, e.seed, e.parts.system)
    except ValueError as error:
        raise ValueError(f"cut: {error}") from None


def _cut(e: Experiment, module: Any, cut: Cut) -> tuple[Head, Tail]:
    return e.parts.model.split(module, cut, e.end)


def _check(e: Experiment, deepest: Head) -> None:
    """Raise ValueError where cuts of different depth make no sense."""
    _, width = deepest.smashed_shape
    if not e.parts.strategy.mixes_cuts:
        raise ValueError(
            f"cut: cuts of different depth do not work with {e.strategy}: take one cut for all, or "
            "another strategy, as sflv1 or parallel"
        )
    if e.parts.codec.modules(width) is not None:
        raise ValueError(
            f"cut: cuts of different depth need a codec without weights of its own, and {e.codec} "
            "trains an encoder for one cut; take one cut for all, or another codec"
        )
    if deepest.selector is not None:
        raise ValueError("cut: cuts of different depth need all tokens; leave tokens at none()")
    if deepest.parts_beside:
        raise ValueError(
            "cut: cuts of different depth do not work with exits; leave exits at none()"
        )
