"""LeNet-5 with ReLU and max-pooling (LeCun et al., 1998), as in the SplitFed papers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from fl_split.models.cut import Head, Tail
from fl_split.models.preprocessing import Preprocessing
from fl_split.models.stages import split
from fl_split.seeds import seeded
from fl_split.specs import STRICT

SMALLEST = 16
"""Pixels a side from which on the second convolution leaves something to pool."""


class LeNetModel(nn.Sequential):
    """Stages conv1, conv2 (5x5, ReLU, max-pool 2), linear1, linear2, linear3."""

    def __init__(self, image_size: int, channels: int, num_classes: int) -> None:
        side = ((image_size - 4) // 2 - 4) // 2
        super().__init__()
        self.image_shape = channels, image_size, image_size
        self.conv1 = _convolution(channels, 6)
        self.conv2 = _convolution(6, 16)
        self.linear1 = nn.Sequential(nn.Flatten(), nn.Linear(16 * side**2, 120), nn.ReLU())
        self.linear2 = nn.Sequential(nn.Linear(120, 84), nn.ReLU())
        self.linear3 = nn.Linear(84, num_classes)

    def stages(self) -> dict[str, nn.Module]:
        """Return the stages by name."""
        return dict(self.named_children())


@dataclass(frozen=True, config=STRICT)
class LeNet:
    """LeNet-5 from scratch: convolutions of 6 and 16 channels, linear layers of 120 and 84.

    `image_size` 0 takes the size of the data set's images; images are resized to it.
    """

    image_size: Annotated[int, Field(ge=0)] = 0

    is_transformers: ClassVar[bool] = False

    def build(self, *, image_size: int, channels: int, num_classes: int, seed: int) -> LeNetModel:
        """Build the model for square images of `image_size` pixels, weights drawn from `seed`.

        Raises
        ------
        ValueError
            The image is too small.
        """
        size = self.image_size or image_size
        if size < SMALLEST:
            raise ValueError(
                f"lenet needs images of {SMALLEST} pixels a side, got {size}; "
                f"lenet(image_size={SMALLEST}) enlarges them"
            )
        with seeded(seed, "model"):
            return LeNetModel(size, channels, num_classes)

    def split(self, module: Any, cut: int | str, end: int | str = 0) -> tuple[Head, Tail]:
        """Cut what :meth:`build` returned, see :func:`fl_split.models.stages.split`."""
        return split(module, cut, end)

    def preprocessing(self) -> Preprocessing:
        """Return what is done to images before this model sees them."""
        return Preprocessing()


def _convolution(channels: int, filters: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, filters, 5), nn.ReLU(), nn.MaxPool2d(2))
