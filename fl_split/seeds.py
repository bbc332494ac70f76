"""Explicit randomness: one generator per (seed, purpose, place in the run)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import numpy as np
import torch

_GLOBAL_GENERATOR = Lock()


def derive(seed: int, purpose: str, *path: int) -> int:
    """Hash a seed, a purpose and a path (round, client, step ...) to 63 bits."""
    text = repr((seed, purpose, path)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def generator(seed: int, purpose: str, *path: int) -> torch.Generator:
    """Return a fresh CPU generator that depends on nothing but its arguments."""
    return torch.Generator().manual_seed(derive(seed, purpose, *path))


@contextmanager
def seeded(seed: int, purpose: str, *path: int) -> Iterator[None]:
    """Seed torch's and NumPy's global generators inside the block and restore them afterwards.

    Only for code of others that draws from them (weight initialisation, dropout, noise of
    differential privacy). There is one of each, so one thread at a time.
    """
    number = derive(seed, purpose, *path)
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        before = np.random.get_state()
        torch.manual_seed(number)
        np.random.seed(number % 2**32)
        try:
            yield
        finally:
            np.random.set_state(before)
