"""Metrics of predictions: pure functions."""

from __future__ import annotations

from torch import Tensor


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows of logits (B, C) whose largest entry is the label, labels (B,)."""
    return float((logits.argmax(dim=1) == labels).double().mean())
