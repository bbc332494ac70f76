"""Explicit randomness: one generator per (seed, purpose, place in the run)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

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
    """Seed torch's global generator inside the block and restore it afterwards.

    Only for code of others that draws from the global generator (weight
    initialisation, dropout). There is one global generator, so one thread at a time.
    """
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, purpose, *path))
        yield
