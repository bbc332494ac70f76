"""Explicit randomness: one generator per (seed, purpose, place in the run)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import Literal

import numpy as np
import torch

_GLOBAL_GENERATOR = Lock()

Purpose = Literal[
    # one step of one client: (round, client, step)
    "codec",
    "pack",
    "downlink",
    "output",
    "way back",
    "head",
    "tail",
    "stand-in",
    "end",
    "augment",
    "channel",
    "down channel",
    "output channel",
    "way back channel",
    # a client: (round, client, epoch), (client,)
    "batches",
    "hold out",
    "speed",
    # a round: (round,), (round, step), (round, client)
    "aggregation",
    "alignment",
    "generated",
    "groups",
    "order",
    "pool",
    "sample",
    "split average",
    # a system model: (), (round,)
    "device speeds",
    "device kinds",
    "network",
    "places",
    # the same: (client,), (round, client, step)
    "sessions",
    "spells",
    "dropouts",
    # the whole run
    "adapters",
    "auxiliary",
    "c3sl keys",
    "codec modules",
    "cuts",
    "exits",
    "experts",
    "gates",
    "model",
    "partition",
    "policy",
    "projection",
    "router",
    "sparsity",
    "tokens",
    # skews, by class: (client,)
    "LabelNoise",
    "Noise",
    "Rotation",
    # trials before a run, whose results are thrown away
    "stacked",
    "trial",
]
"""Everything that is drawn; two uses of one name would give correlated numbers."""


def derive(seed: int, purpose: Purpose, *path: int) -> int:
    """Hash a seed, a purpose and a path (round, client, step ...) to 63 bits."""
    text = repr((seed, purpose, path)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def generator(seed: int, purpose: Purpose, *path: int) -> torch.Generator:
    """Return a fresh CPU generator that depends on nothing but its arguments."""
    return torch.Generator().manual_seed(derive(seed, purpose, *path))


@dataclass(frozen=True)
class StepId:
    """One step of one client: all randomness of the step is derived from these four numbers."""

    seed: int
    round: int
    client: int
    step: int

    def path(self) -> tuple[int, int, int]:
        """Round, client, step."""
        return self.round, self.client, self.step

    def next(self) -> StepId:
        """Return the client's next step of the same round."""
        return replace(self, step=self.step + 1)

    def generator(self, purpose: Purpose) -> torch.Generator:
        """Return a fresh generator for one purpose of this step."""
        return generator(self.seed, purpose, *self.path())


@contextmanager
def seeded(seed: int, purpose: Purpose, *path: int) -> Iterator[None]:
    """Seed torch's and NumPy's global generators inside the block and restore them afterwards.

    Only for code of others that draws from them (weight initialisation, dropout, noise of
    differential privacy). There is one of each, so one thread at a time. A GPU must be in use
    before: the generator of one that is first used inside the block is not seeded.
    """
    number = derive(seed, purpose, *path)
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    # torch.manual_seed notes a whole stack trace for each kind of GPU that is not in use.
    of_all = bool(gpus) or torch.backends.mps.is_available()
    seed_torch = torch.manual_seed if of_all else torch.default_generator.manual_seed
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=gpus):
        before = np.random.get_state()
        seed_torch(number)
        np.random.seed(number % 2**32)
        try:
            yield
        finally:
            np.random.set_state(before)


def global_state() -> tuple[bytes, bytes, int]:
    """Return where torch's and NumPy's global generators are: it moves when one is drawn from."""
    _, keys, position, *_ = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), np.asarray(keys).tobytes(), int(position)
