"""What a link refuses: numbers that are not finite, and what no tail can be trained on."""

from __future__ import annotations

import torch

from fl_split.codecs import Received
from fl_split.models.cut import Tail
from fl_split.payload import Payload


def shapes(payload: Payload) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the values by name."""
    return {name: tuple(value.shape) for name, value in payload.carried.items()}


def check_finite(payload: Payload) -> None:
    """Raise ValueError if a value is infinite or not a number."""
    for value in payload.carried.values():
        if value.numel() and not all(map(torch.isfinite, value.detach().aminmax())):
            raise ValueError("values that are not finite")


def check_received(received: Received, tail: Tail) -> None:
    """Raise ValueError for what `tail` cannot be trained on."""
    tokens, targets = received.tokens, received.targets
    classes, width, count = tail.num_classes, tail.width, tail.num_tokens or "T"
    if tokens.dim() != 3 or not len(tokens) or tokens.shape[2] != width:
        raise ValueError(f"tokens must be (K, {count}, {width}), got {tuple(tokens.shape)}")
    if tail.num_tokens not in {None, tokens.shape[1]}:
        raise ValueError(f"tokens must be (K, {count}, {width}), got {tuple(tokens.shape)}")
    if targets.shape not in {(len(tokens),), (len(tokens), classes)}:
        raise ValueError(f"targets do not fit {len(tokens)} rows: {tuple(targets.shape)}")
    if targets.dim() == 1 and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise ValueError(f"labels must be in 0..{classes - 1}")
    if not bool(targets.isfinite().all()):
        raise ValueError("labels that are not finite")
