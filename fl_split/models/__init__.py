"""Models: one file each, one line here. A model is built and cut by its own description."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn

from fl_split.models.checkpoint import Loaded
from fl_split.models.cut import Head, Tail
from fl_split.models.lenet import LeNet
from fl_split.models.preprocessing import Preprocessing
from fl_split.models.pretrained import Pretrained
from fl_split.models.resnet import ResNet18
from fl_split.models.vit import ViT
from fl_split.tables import Table


@runtime_checkable
class Model(Protocol):
    """A description that builds a model; a frozen dataclass whose ``repr`` is its spec."""

    @property
    def is_transformers(self) -> bool:
        """Whether transformers' ``from_pretrained`` gives the trained model back.

        Then the module has a ``config``, which names the classes and is saved with it.
        """
        ...

    def build(self, *, image_size: int, channels: int, num_classes: int, seed: int) -> nn.Module:
        """Build the whole model; raise ValueError if it cannot be."""
        ...

    def split(self, module: Any, cut: int | str, end: int | str = 0) -> tuple[Head, Tail]:
        """Cut a module that :meth:`build` returned after one of its stages, by number or name.

        With `end` it is cut once more, before that stage, in a U-shape: the head has an end and
        the tail is but the middle. Both halves share their modules with `module`.

        Raises
        ------
        ValueError
            A cut leaves nothing on one of its two sides, or names no stage.
        """
        ...

    def preprocessing(self) -> Preprocessing:
        """Return what is done to images before the model sees them.

        Raises
        ------
        ValueError
            The settings of a checkpoint make no sense; the message names file and key.
        """
        ...


@runtime_checkable
class Loader(Protocol):
    """A model description that has more to say about what it built."""

    def load(self, *, image_size: int, channels: int, num_classes: int, seed: int) -> Loaded:
        """Do what :meth:`Model.build` does, and say what was decided on the way."""
        ...


def build(spec: Model, **sizes: int) -> Loaded:
    """Build the model that `spec` describes, with what it has to say about it, if anything.

    `sizes` are the arguments of :meth:`Model.build`, which raises ValueError.
    """
    return spec.load(**sizes) if isinstance(spec, Loader) else Loaded(spec.build(**sizes))


MODELS: Table[type[Model]] = Table(
    Model,
    "fl_split.models",
    {
        "lenet": LeNet,
        "pretrained": Pretrained,
        "resnet18": ResNet18,
        "vit": ViT,
    },
)

__all__ = ["MODELS", "Loaded", "Loader", "Model", "build"]
