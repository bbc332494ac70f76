"""Activation memory: what autograd keeps between forward and backward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def saved() -> Iterator[dict[int, int]]:
    """Yield bytes by storage address of all tensors that autograd saves in the block.

    Weights count where a backward needs them; see :func:`activation_bytes`.
    """
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes


def activation_bytes(sizes: dict[int, int], weights: Iterable[Tensor]) -> int:
    """Sum up what :func:`saved` found, without the weights themselves."""
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    return sum(size for address, size in sizes.items() if address not in known)
