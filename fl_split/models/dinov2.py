"""DINOv2 (Oquab et al., TMLR 2024, arXiv 2304.07193), cut after any block.

Its blocks scale what they add (LayerScale), which is theirs to do. Its classifier reads the CLS
token beside the mean of all other tokens, so of those that a codec has left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fl_split.models.vit import ViTHead, ViTMiddle, ViTTail
from fl_split.models.vit import split as split_vit

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Dinov2Head(ViTHead):
    """Patch embedding and the first blocks."""

    @property
    def can_stack(self) -> bool:
        """False: scales of layers have no stacked counterpart."""
        return False


class Dinov2Tail(ViTTail):
    """All other blocks, the final norm, the classifier."""

    def read(self, normed: Tensor) -> Tensor:
        """Return logits (B, C) for normed tokens (B, T, D)."""
        (classifier,) = self.classifiers
        features = torch.cat([normed[:, 0], normed[:, 1:].mean(dim=1)], dim=1)
        logits: Tensor = classifier(features)
        return logits


def split(model: PreTrainedModel, cut: int | str, end: int | str = 0) -> tuple[ViTHead, ViTMiddle]:
    """Cut `model`, see :func:`fl_split.models.vit.split`."""
    return split_vit(model, cut, end, Dinov2Head, Dinov2Tail)
