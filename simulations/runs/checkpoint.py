"""Checkpoints: all that a run needs to go on, in one file that is written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import RecordDict
from flwr.serverapp import Grid
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fl_split.exchange.records import Weights
from fl_split.spec_errors import SpecError
from simulations.engines.local_grid import LocalGrid, stack_of
from simulations.runs.experiment import Experiment
from simulations.runs.files import write_whole
from simulations.runs.observers import Observer, Row
from simulations.runs.origins import origins
from simulations.runs.provenance import machine
from simulations.runs.results import EXPERIMENT, STUDY
from simulations.runs.settings import read_toml
from strategies import RoundResult
from strategies.server import flower_private

FILE = "checkpoint.safetensors"

MOST_KEPT = 2**28
"""Bytes that the server may remember, beside weights, for a copy of them to be kept each round."""

FREE = {
    "cache_gb", "out", "plugins", "device", "stack", "engine", "timeout", "checkpoint_every",
    "tracking",
}  # fmt: skip
"""Keys that do not change a result, or but its last bits, which is said: a run may go on with
other values."""
# `plugins` only says where code lies; the code itself is compared.


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why."""


@dataclass(frozen=True)
class Checkpoint:
    """A run between two rounds.

    Attributes
    ----------
    rounds : int
        Rounds done.
    weights : Mapping[str, Weights]
        Global weights HEAD and TAIL.
    moments : dict
        What the server remembers beside weights: of each optimiser ("tail", "pooled-head",
        "pooled-tail"), of the aggregation, of the link.
    clients : dict
        Flower state of the clients that have one, by partition id.
    cpu : str
        Kinds of CPU or GPU that the rounds were computed on, see `provenance.kinds`; empty if
        unknown.
    stack : int
        How many clients' heads ran as one; 0 where trials decided.
    """

    rounds: int
    weights: Mapping[str, Weights]
    moments: Mapping[str, dict[str, Tensor]]
    clients: Mapping[int, RecordDict]
    cpu: str = ""
    stack: int = 0

    def write(self, folder: Path, experiment: Experiment) -> None:
        """Replace the checkpoint in `folder`; a crash leaves the old one or the new one."""
        tensors = {
            f"weights/{name}": torch.from_numpy(vector.numpy().copy())
            for name, vector in self.weights.items()
        }
        for name, moments in self.moments.items():
            tensors |= {f"moments/{name}/{key}": value.cpu() for key, value in moments.items()}
        for client, state in self.clients.items():
            data = bytearray(flower_private.record_to_bytes(state))
            tensors[f"client/{client}"] = torch.frombuffer(data, dtype=torch.uint8)
        metadata = {
            "rounds": str(self.rounds),
            "cpu": self.cpu,
            "stack": str(self.stack),
            "experiment": json.dumps(_fixed(experiment)),
        }
        metadata["digest"] = _digest(tensors, metadata)
        write_whole(folder / FILE, save(tensors, metadata))


class Checkpointer(Observer):
    """Writes a checkpoint every `checkpoint_every` rounds, if the engine reports states of clients.

    Parameters
    ----------
    moments : Callable
        Gives the state of optimisers that training does not know of.
    before : Checkpoint
        Where the run began or goes on.
    device : torch.device
        What computes.

    Attributes
    ----------
    latest : Checkpoint, optional
        The run after its last round, for a run that is stopped in between; None where it
        would take too much memory or time, or nothing is to be written.
    """

    def __init__(
        self,
        grid: Grid,
        folder: Path,
        experiment: Experiment,
        moments: Callable[[], dict[str, dict[str, Tensor]]],
        before: Checkpoint,
        device: torch.device,
    ) -> None:
        self.grid, self.folder, self.experiment = grid, folder, experiment
        self.moments, self.cpu = moments, machine(before.cpu, device)["cpu"]
        self.latest: Checkpoint | None = None
        self.written = before.rounds

    def keep(self, result: RoundResult) -> None:
        """Keep what a checkpoint of this round would hold, while the clients are in no round."""
        self.latest = None
        if not self.experiment.checkpoint_every or not isinstance(self.grid, LocalGrid):
            return
        moments = self._moments(result)
        if _bytes(moments) <= MOST_KEPT:
            # Copies: optimisers write into their moments while the next round goes on.
            copies = {
                name: {key: value.detach().to("cpu", copy=True) for key, value in found.items()}
                for name, found in moments.items()
            }
            self.latest = self._checkpoint(result, copies, self.grid.states_at_hand())

    def after_round(self, result: RoundResult, row: Row) -> bool:
        """Write a checkpoint if it is time to."""
        every = self.experiment.checkpoint_every
        if not every or result.round % every:
            return False
        found = self.latest
        if not found:
            states = self.grid.states() if isinstance(self.grid, LocalGrid) else None
            found = self._checkpoint(result, self._moments(result), states)
        if found:  # or a worker is just being restarted: not this time
            self._write(found)
        return False

    def write_latest(self) -> None:
        """Write a checkpoint of the last whole round, where it is kept and not yet written."""
        if self.latest and self.latest.rounds > self.written:
            self._write(self.latest)

    def _write(self, found: Checkpoint) -> None:
        found.write(self.folder, self.experiment)
        self.written = found.rounds

    def _moments(self, result: RoundResult) -> dict[str, dict[str, Tensor]]:
        progress = result.progress
        return {
            **self.moments(),
            "tail": progress.moments,
            "aggregator": progress.aggregator,
            "link": progress.link,
        }

    def _checkpoint(
        self,
        result: RoundResult,
        moments: Mapping[str, dict[str, Tensor]],
        states: Mapping[int, RecordDict] | None,
    ) -> Checkpoint | None:
        if states is None:
            return None
        kinds = self.cpu, stack_of(self.grid)
        return Checkpoint(result.round, result.weights, moments, states, *kinds)


def _bytes(moments: Mapping[str, Mapping[str, Tensor]]) -> int:
    return sum(value.nbytes for found in moments.values() for value in found.values())


def read(folder: Path, keys: Mapping[str, Any] | None = None) -> tuple[Experiment, Checkpoint]:
    """Read the run in `folder` and its checkpoint.

    `keys` replace those of the run: objects that are given again, and keys in :data:`FREE`.

    Raises
    ------
    CheckpointError
        There is none, it is torn, or it belongs to another experiment.
    SpecError
        An object of the run is missing among `keys`.
    """
    experiment = read_experiment(folder, keys or {})
    path = folder / FILE
    if not path.is_file():
        every = experiment.checkpoint_every
        early = "it ended before its first one" if every else "checkpoint_every is 0"
        raise CheckpointError(
            f"{str(folder)!r} holds no checkpoint: the run is complete, or {early}, "
            "or `flwr run` made it, which writes none"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is torn or no checkpoint: {error}") from None
    if metadata.pop("digest", None) != _digest(tensors, metadata):
        raise CheckpointError(f"{path} is damaged: its contents are not those that were written")
    # Keys that came later were at their defaults.
    theirs = {**_fixed(Experiment.from_dict({})), **json.loads(metadata["experiment"])}
    ours = _fixed(experiment)
    for key in {*theirs, *ours}:
        if theirs.get(key) != ours.get(key):
            raise CheckpointError(
                f"{path} belongs to another experiment: {key} is {theirs.get(key)!r} there "
                f"and {ours.get(key)!r} in {EXPERIMENT}"
            )
    return experiment, _assemble(metadata, tensors)


def read_experiment(folder: Path, keys: Mapping[str, Any]) -> Experiment:
    """Read the experiment of the run in `folder`.

    `keys` replace those of the run: objects that are given again, and keys in :data:`FREE`.

    Raises
    ------
    CheckpointError
        There is none, or `keys` has another value for one that matters.
    SpecError
        An object of the run is missing among `keys`.
    """
    if not (folder / EXPERIMENT).is_file():
        raise CheckpointError(f"{str(folder)!r} holds no run: no {EXPERIMENT}{_runs_below(folder)}")
    values = {**read_toml(folder / EXPERIMENT), "out": str(folder)}
    for key, value in keys.items():
        if key not in FREE - {"out"} and value != values.get(key):
            raise CheckpointError(
                f"{key}: the run in {str(folder)!r} has {values.get(key)!r}, got {value!r}"
            )
    try:
        return Experiment.from_dict({**values, **keys})
    except SpecError as error:
        raise SpecError(f"{folder / EXPERIMENT}: {error}") from None


def _assemble(metadata: dict[str, str], tensors: dict[str, Tensor]) -> Checkpoint:
    weights, clients = {}, {}
    moments: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        kind, _, name = path.partition("/")
        if kind == "weights":
            weights[name] = Weights.of(tensor.numpy())
        elif kind == "client":
            clients[int(name)] = flower_private.record_from_bytes(tensor.numpy().tobytes())
        else:
            optimizer, _, key = name.partition("/")
            moments.setdefault(optimizer, {})[key] = tensor
    rounds, cpu = int(metadata["rounds"]), metadata.get("cpu", "")
    return Checkpoint(rounds, weights, moments, clients, cpu, int(metadata.get("stack", 0)))


def _fixed(experiment: Experiment) -> dict[str, object]:
    """Return what must be as it was when a run goes on: keys, and the code of foreign parts."""
    code = {f"the code of {key}": found for key, found in origins(experiment).items()}
    return {**experiment.model_dump(exclude=FREE), **code}


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    total = hashlib.blake2b(repr(sorted(metadata.items())).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _runs_below(folder: Path) -> str:
    """Advise how runs below a folder are resumed: one by one, or by the study's own command."""
    if (folder / STUDY).exists():
        return "; of a study, repeat the command with the same --out"
    runs = [str(path.parent) for path in sorted(folder.glob(f"*/{FILE}"))]
    return f"; resume one of {', '.join(runs)}" if runs else ""
