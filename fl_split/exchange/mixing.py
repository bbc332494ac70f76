"""Mixed labels on their way: a sample that is blended with another has a share of two classes.

They travel beside what a codec makes of the batch, so that a codec that keeps one row per sample
need not know of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from fl_split.codecs import Mixed, Received
from fl_split.payload import Payload

LABELS, SHARE = "mixed-labels", "mixed-share"
"""Side tensors: the other label of each sample (B,), and the share (1,) of its own."""


def attach(payload: Payload, mixed: Mixed) -> Payload:
    """Return `payload` with what labels are mixed with."""
    share = torch.tensor([mixed.share], device=mixed.labels.device)
    return Payload(payload.carried, {**payload.side, LABELS: mixed.labels, SHARE: share})


def mix(received: Received, side: Mapping[str, Tensor], num_classes: int) -> Received:
    """Return `received` with mixed targets (B, C), if labels were mixed.

    Raises
    ------
    ValueError
        The codec has merged samples, so that no row has labels of its own.
    """
    if LABELS not in side:
        return received
    others, own = side[LABELS].long(), received.targets
    if own.shape != others.shape:
        raise ValueError(f"{len(others)} mixed labels for targets {tuple(own.shape)}")
    return replace(received, targets=_between(own, others, side[SHARE].float(), num_classes))


def mixed_targets(labels: Tensor, mixed: Mixed | None, num_classes: int) -> Tensor:
    """Return targets of a batch: labels (B,), or what they are mixed to, (B, C)."""
    if mixed is None:
        return labels
    return _between(labels, mixed.labels, mixed.share, num_classes)


def _between(own: Tensor, others: Tensor, share: Tensor | float, num_classes: int) -> Tensor:
    first, second = (functional.one_hot(one, num_classes).float() for one in (own, others))
    return share * first + (1 - share) * second
