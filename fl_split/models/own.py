"""A model that is given as an object: stages one after the other, cut after one of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from fl_split.models.cut import Head, Tail
from fl_split.models.norms import replace
from fl_split.models.stages import split
from fl_split.seeds import seeded

Maker = Callable[..., nn.Module]
"""Makes the stages, called with `image_size`, `channels` and `num_classes` by name."""


class StagedModule(nn.Module):
    """Named stages for images of `image_shape`, (C, H, W); the last one ends in logits."""

    def __init__(self, stages: Mapping[str, nn.Module], image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape = image_shape
        for name, stage in stages.items():
            self.add_module(name, stage)

    def stages(self) -> dict[str, nn.Module]:
        """Return the stages by name."""
        return dict(self.named_children())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes) for images (B, C, H, W)."""
        for stage in self.children():
            pixels = stage(pixels)
        return pixels


@dataclass(frozen=True, eq=False)
class OwnModel:
    """A model of the user's.

    Parameters
    ----------
    stages : nn.Module or Callable
        A module whose children are the stages, such as ``nn.Sequential``; its weights are the
        initial ones. Or a function of `image_size`, `channels` and `num_classes` that makes
        one; its weights are drawn from the experiment's seed.
    image_size : int
        Pixels a side that images are resized to; 0 takes the size of the data set's images.
    mean, std : tuple of float
        Per channel, or one for all: what the pixels, from 0 to 1, are normalised by.
    """

    stages: nn.Module | Maker
    image_size: int = 0
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    is_transformers: ClassVar[bool] = False

    def __repr__(self) -> str:
        """Name the kind of module, or the function."""
        return getattr(self.stages, "__name__", type(self.stages).__name__)

    def build(self, *, image_size: int, channels: int, num_classes: int, seed: int) -> StagedModule:
        """Return a copy of the stages, or what the function makes.

        Batch norms are those of :mod:`fl_split.models.norms`, whose running statistics are
        averaged with the weights.

        Raises
        ------
        ValueError
            Fewer than two stages, or stages that do not make `num_classes` logits of an image.
        """
        size = self.image_size or image_size
        shape = channels, size, size
        if isinstance(self.stages, nn.Module):
            module = copy.deepcopy(self.stages)
        else:
            with seeded(seed, "model"):
                module = self.stages(image_size=size, channels=channels, num_classes=num_classes)
        model = StagedModule(dict(module.named_children()), shape)
        replace(model, "batch", "averaged")
        self._check(model, num_classes)
        return model

    def split(self, module: Any, cut: int | str, end: int | str = 0) -> tuple[Head, Tail]:
        """Cut what :meth:`build` returned, see :func:`fl_split.models.stages.split`."""
        return split(module, cut, end)

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation, per channel, of the input."""
        return list(self.mean), list(self.std)

    @torch.no_grad()
    def _check(self, model: StagedModule, num_classes: int) -> None:
        """Raise ValueError unless an image becomes `num_classes` logits."""
        names = ", ".join(model.stages()) or "none"
        if len(model.stages()) < 2:
            raise ValueError(
                f"a model that is cut needs two stages or more, as children; has: {names}"
            )
        was_training = model.training
        try:
            logits = model.eval()(torch.zeros(1, *model.image_shape))
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(
                f"the stages ({names}), run one after the other, fail for an image of shape "
                f"{model.image_shape}: {error}"
            ) from None
        model.train(was_training)
        if tuple(logits.shape) != (1, num_classes):
            raise ValueError(
                f"the last stage must give (B, {num_classes}), a logit for each class of the data "
                f"set; for one image it gives {tuple(logits.shape)}"
            )
