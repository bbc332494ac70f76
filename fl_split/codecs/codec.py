"""The contract of a codec: ``decode(encode(smashed))`` is what the tail trains on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fl_split.payload import Payload


@dataclass(frozen=True)
class Smashed:
    """What the head gives a codec for one batch.

    Attributes
    ----------
    tokens : Tensor
        (B, N, D), with gradient; token 0 is CLS.
    attention : Callable
        Called, gives the CLS attention row (B, N) of the last head block, without gradient.
    labels : Tensor
        (B,) int64 classes.
    num_classes : int
        How many classes there are in the experiment.
    """

    tokens: Tensor
    attention: Callable[[], Tensor]
    labels: Tensor
    num_classes: int


@dataclass(frozen=True)
class Received:
    """What the server trains on: K rows, K = B unless the codec merges samples.

    Attributes
    ----------
    tokens : Tensor
        (K, T, D), differentiable in the payload's values; token 0 is CLS.
    targets : Tensor
        (K,) int64 classes, or (K, C) float mixtures that sum to 1.
    weights : Tensor or None
        (K,) float loss weights of the rows; None is the plain mean.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor | None = None


class Codec(Protocol):
    """A frozen dataclass whose ``repr`` is its spec.

    Gradients flow by autograd through ``Payload.values`` on both sides; a codec needs no
    gradient code of its own. `decode` may use the payload and the codec's own fields only.
    """

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Compress one batch; every random choice comes from `generator`."""
        ...

    def decode(self, payload: Payload) -> Received:
        """Rebuild tokens and targets from what was sent."""
        ...
