"""Exits that clients keep for themselves, as a run leaves them: of all clients in one file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.app import RecordDict
from safetensors.torch import load_file, save
from torch import Tensor

from fl_split.exchange.records import EXITS, Weights
from fl_split.exits import Exits
from simulations.clients.state import ClientState
from simulations.runs.files import write_whole

FILE = "private_exits.safetensors"
"""Has weights by client and name, as `client3.classifiers.0.weight`."""


def of_states(states: Mapping[int, RecordDict]) -> dict[int, Weights]:
    """Return the exits in states of clients, as a checkpoint has them; of those that have some."""
    read = {client: ClientState.read(state) for client, state in states.items()}
    return {
        client: Weights.of(one.memory[EXITS].numpy())
        for client, one in read.items()
        if one and EXITS in one.memory
    }


def each(exits: Exits, weights: Mapping[int, Weights]) -> dict[int, Exits]:
    """Return the exits of each client: such as `exits`, with the client's own weights."""
    return {
        client: exits.with_weights(torch.from_numpy(vector.numpy().copy()))
        for client, vector in weights.items()
    }


def write(folder: Path, exits: Exits | None, weights: Mapping[int, Weights]) -> None:
    """Write the exits of all clients, if they keep some, beside the model."""
    if exits is None or not weights:
        return
    found = {
        f"client{client}.{name}": weight.to("cpu").contiguous()
        for client, one in each(exits, weights).items()
        for name, weight in one.state_dict().items()
    }
    write_whole(folder / FILE, save(found))


def read(folder: Path, exits: Exits | None) -> dict[int, Exits]:
    """Read what :func:`write` wrote; empty if nothing was: then clients have those drawn.

    Raises
    ------
    ValueError
        The file has other weights than `exits`, as one of another version.
    """
    if exits is None or not exits.is_private or not (folder / FILE).is_file():
        return {}
    by_client: dict[int, dict[str, Tensor]] = {}
    for path, weight in load_file(folder / FILE).items():
        client, _, name = path.partition(".")
        by_client.setdefault(int(client.removeprefix("client")), {})[name] = weight
    found = {}
    for client, weights in sorted(by_client.items()):
        found[client] = copy.deepcopy(exits)
        try:
            found[client].load_state_dict(weights)
        except RuntimeError as error:
            where = f"{folder / FILE}: exits of client {client}"
            raise ValueError(f"{where} do not fit: {error}") from None
    return found
