"""The loss of classification: cross-entropy with weights of rows and smoothed labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fl_split.codecs import Received


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of logits (K, C), averaged over rows with the codec's weights.

    Parameters
    ----------
    label_smoothing : float
        Share of each target that goes to all classes alike (Szegedy et al., CVPR 2016).
    """

    label_smoothing: float = 0.0

    def of(self, logits: Tensor, received: Received) -> Tensor:
        """Return the loss of one client."""
        if received.weights is None:
            return functional.cross_entropy(
                logits, received.targets, label_smoothing=self.label_smoothing
            )
        rows = self._rows(logits, received.targets)
        return (rows * received.weights).sum() / received.weights.sum()

    def joint(
        self, logits: Tensor, received: Sequence[Received], weights: Sequence[float]
    ) -> tuple[Tensor, list[float]]:
        """Return sum_k weights[k] loss_k and every loss_k; the rows of all k in one operation."""
        if len(received) == 1:
            value = self.of(logits, received[0])
            return weights[0] * value, [float(value.detach())]
        rows = self._rows(logits, torch.cat([part.targets for part in received]))
        share = torch.cat([shares_of_rows(part) for part in received])
        counts = torch.tensor([len(part.tokens) for part in received], device="cpu")
        scale = torch.tensor(weights, device="cpu").repeat_interleave(counts).to(rows.device)
        starts = (counts.cumsum(0) - counts).cpu().numpy()
        losses = np.add.reduceat((rows.detach() * share).cpu().numpy(), starts)
        return (rows * (share * scale)).sum(), losses.tolist()

    def _rows(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self.label_smoothing
        )


def shares_of_rows(received: Received) -> Tensor:
    """Return how much each row counts in the client's loss; the shares sum to 1."""
    if received.weights is None:
        count = len(received.tokens)
        return torch.full((count,), 1 / count, device=received.tokens.device)
    return received.weights / received.weights.sum()
