"""Models: one file each, one line here; and the cut of any of them."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn
from transformers import ViTForImageClassification

from fl_split import conv, vit
from fl_split.cut import Head, Tail, insert
from fl_split.lenet import LeNet
from fl_split.resnet import ResNet18
from fl_split.vit import Pretrained, ViT


class Model(Protocol):
    """A description that builds a model; a frozen dataclass whose ``repr`` is its spec."""

    @property
    def is_transformers(self) -> bool:
        """Whether transformers' ``from_pretrained`` gives the trained model back."""
        ...

    def build(self, *, image_size: int, channels: int, num_classes: int, seed: int) -> nn.Module:
        """Build the whole model; raise ValueError if it cannot be."""
        ...

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation, per channel, of the input."""
        ...


MODELS = {"lenet": LeNet, "pretrained": Pretrained, "resnet18": ResNet18, "vit": ViT}


def split(model: Any, cut: int | str) -> tuple[Head, Tail]:
    """Cut a ViT after a block, any other model after one of its stages, by number or name.

    Both halves share their modules with `model`.

    Raises
    ------
    ValueError
        `cut` leaves nothing on one of the two sides, or names no stage.
    """
    if isinstance(model, ViTForImageClassification):
        return vit.split(model, cut)
    return conv.split(model, cut)


__all__ = ["MODELS", "Head", "Model", "Tail", "insert", "split"]
