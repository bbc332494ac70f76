"""A model that is given as an object: stages one after the other, cut after one of them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fl_split.models.cut import Head, Tail
from fl_split.models.norms import BatchNorm, replace
from fl_split.models.preprocessing import Preprocessing
from fl_split.models.stages import ConvMiddle, split
from fl_split.seeds import generator, seeded

Maker = Callable[..., nn.Module]
"""Makes the stages, called with `image_size`, `channels` and `num_classes` by name."""


class StagedModule(nn.Module):
    """Named stages for images of `image_shape`, (C, H, W); the last one ends in logits."""

    def __init__(self, stages: Mapping[str, nn.Module], image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape = image_shape
        self._modules.update(stages)  # add_module refuses names such as "stages"

    def stages(self) -> dict[str, nn.Module]:
        """Return the stages by name; a module may be several of them."""
        return {name: stage for name, stage in self._modules.items() if stage is not None}

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, classes) for images (B, C, H, W)."""
        for stage in self.stages().values():
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
            Fewer than two stages, stages that do not make `num_classes` logits of an image, a
            forward that does more than they do, or a layer that keeps state beside weights.
        """
        size = self.image_size or image_size
        shape = channels, size, size
        if isinstance(self.stages, nn.Module):
            module = copy.deepcopy(self.stages)
        else:
            with seeded(seed, "model"):
                module = self.stages(image_size=size, channels=channels, num_classes=num_classes)
        if not isinstance(module, nn.Module):
            raise ValueError(f"{self!r} must return an nn.Module, got {type(module).__name__}")
        stages = {name: stage for name, stage in module._modules.items() if stage is not None}
        _check_weights(module, stages)
        pixels = torch.randn(2, *shape, generator=generator(0, "trial"), device="cpu")
        whole = None
        if type(module).forward not in (nn.Module.forward, nn.Sequential.forward):
            whole = _logits(copy.deepcopy(module), pixels, "its forward fails")
        model = StagedModule(stages, shape)
        replace(model, "batch", "averaged")
        _check_logits(whole, _logits_of_stages(model, pixels), num_classes, ", ".join(stages))
        return model

    def split(self, module: Any, cut: int | str, end: int | str = 0) -> tuple[Head, Tail]:
        """Cut what :meth:`build` returned, see :func:`fl_split.models.stages.split`.

        Raises
        ------
        ValueError
            Also where a part has nothing to train, or two parts share what they train.
        """
        head, tail = split(module, cut, end)
        place = f"cut={cut!r}" + (f", end={end!r}" if end else "")
        parts = {"the client's first stages": head.stages, "the server's stages": tail.stages}
        if isinstance(head.end, ConvMiddle):
            parts["the client's last stages"] = head.end.stages
        owners: dict[int, str] = {}
        for owner, part in parts.items():
            weights = [weight for weight in part.parameters() if weight.requires_grad]
            if not weights:
                raise ValueError(f"{place}: {owner} have no weights to train; cut elsewhere")
            for weight in weights:
                if owners.setdefault(id(weight), owner) != owner:
                    raise ValueError(
                        f"{place}: {owners[id(weight)]} and {owner} share weights, which two "
                        "parties cannot train; cut elsewhere, or give each its own"
                    )
        return head, tail

    def preprocessing(self) -> Preprocessing:
        """Return what is done to images before this model sees them."""
        mean, std = tuple(self.mean), tuple(self.std)
        is_default = Preprocessing(mean, std) == Preprocessing()
        return Preprocessing(mean, std, origin="" if is_default else "the model")


def _check_weights(module: nn.Module, stages: Mapping[str, nn.Module]) -> None:
    """Raise ValueError where there are too few stages, or weights that are in none of them."""
    if len(stages) < 2:
        names = ", ".join(stages) or "none"
        raise ValueError(f"a model that is cut needs two stages or more, as children; has: {names}")
    if outside := [name for name, _ in module.named_parameters(recurse=False)]:
        raise ValueError(
            f"{outside[0]!r} is a weight of the model itself; only its children are stages, so "
            "put it into one of them"
        )
    if lazy := [name for name, weight in module.named_parameters() if is_lazy(weight)]:
        raise ValueError(f"{lazy[0]!r} has no size yet; run the model once on an image of yours")


@torch.no_grad()
def _logits(module: nn.Module, pixels: Tensor, failure: str) -> list[Any]:
    """Return what `module` makes of `pixels` in evaluation and in training."""
    found = []
    for is_training in (False, True):
        with seeded(0, "trial"):
            try:
                output = module.train(is_training)(pixels)
            except Exception as error:
                shape = tuple(pixels.shape[1:])
                raise ValueError(f"{failure} for an image of shape {shape}: {error}") from error
        found.append(getattr(output, "logits", output))
    return found


def _logits_of_stages(model: StagedModule, pixels: Tensor) -> list[Any]:
    """Do the same for stages; raise ValueError if they keep state in a way that would be lost."""
    model, names = copy.deepcopy(model), ", ".join(model.stages())
    calls: Counter[str] = Counter()
    for name, part in model.named_modules():
        if isinstance(part, BatchNorm):
            part.register_forward_hook(lambda *_, name=name: calls.update([name]))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = _logits(model, pixels, f"the stages ({names}), run one after the other, fail")
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, before[name]):
            raise ValueError(
                f"stage {name.partition('.')[0]!r} changes {name!r} in a training forward; only "
                "nn.BatchNorm1d, 2d and 3d may, for forwards are repeated and thrown away"
            )
    for name, count in calls.items():
        if count > len(found):
            raise ValueError(
                f"batch norm {name!r} runs more than once in a forward; give each place its own"
            )
    return found


def _check_logits(whole: list[Any] | None, found: list[Any], num_classes: int, names: str) -> None:
    """Raise ValueError unless the stages give logits, and those of the whole model."""
    shapes = {tuple(output.shape) if isinstance(output, Tensor) else () for output in found}
    if shapes != {(2, num_classes)}:
        raise ValueError(
            f"the last stage must give (B, {num_classes}), a logit for each class of the data "
            f"set; for two images it gives {shapes.pop() or type(found[0]).__name__}"
        )
    for mode, mine, own in zip(("evaluation", "training"), found, whole or found, strict=True):
        is_same = isinstance(own, Tensor) and own.shape == mine.shape
        if not is_same or not torch.allclose(own, mine, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise ValueError(
                f"the model's own forward gives other logits in {mode} than its stages ({names}), "
                "run one after the other; put whatever it does between them into stages"
            )
