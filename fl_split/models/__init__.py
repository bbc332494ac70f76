"""Models: one file each, one line here; and the cut of any of them."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from fl_split.models import stages as conv
from fl_split.models import vit
from fl_split.models.cut import Head, Tail, insert
from fl_split.models.lenet import LeNet
from fl_split.models.resnet import ResNet18
from fl_split.models.vit import Pretrained, ViT


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


def split(model: Any, cut: int | str, end: int | str = 0) -> tuple[Head, Tail]:
    """Cut a ViT after a block, any other model after one of its stages, by number or name.

    With `end` it is cut once more, before that stage, in a U-shape: the head has an end and
    the tail is but the middle. Both halves share their modules with `model`.

    Raises
    ------
    ValueError
        A cut leaves nothing on one of its two sides, or names no stage.
    """
    if isinstance(model, vit.ARCHITECTURES):
        return vit.split(model, cut, end)
    return conv.split(model, cut, end)


__all__ = ["MODELS", "Head", "Model", "Tail", "insert", "split"]
