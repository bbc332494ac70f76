"""Checkpoints of transformers, from a local folder or a hub name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from fl_split.models.cut import Head, Tail
from fl_split.models.lora import add_adapters
from fl_split.models.vit import check_sizes, split
from fl_split.seeds import seeded
from fl_split.specs import STRICT

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(
    from_pretrained: Callable[..., Any], what: str, path: str, num_classes: int, seed: int
) -> Any:
    """Load a `what` of transformers; a classifier of another size is drawn from `seed`.

    Raises
    ------
    ValueError
        There is nothing to load at `path`, or no `what`.
    """
    if path.startswith((".", "/", "~")) and not Path(path).is_dir():
        raise ValueError(f"cannot load a {what} from {path!r}: no such folder")
    try:
        with seeded(seed, "model"):
            model, found = from_pretrained(
                path,
                num_labels=num_classes,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # every file format fails in its own way
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        reason = reason if Path(path).is_dir() else f"no such folder here, and {reason}"
        raise ValueError(f"cannot load a {what} from {path!r}: {reason}") from None
    missing = [key for key in found["missing_keys"] if "classifier." not in key]
    if missing:
        raise ValueError(f"{path!r} holds no {what}: {missing[0]} is missing")
    return model


def normalisation(path: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, per channel, that a checkpoint was trained with."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except OSError:
        settings = {}
    return settings.get("image_mean", [0.5]), settings.get("image_std", [0.5])


@dataclass(frozen=True, config=STRICT)
class Pretrained:
    """ViT or DeiT checkpoint from a local folder or a hub name, with a new classifier if needed.

    A DeiT may be distilled, with one classifier or two (see :mod:`fl_split.models.vit`).

    Images are resized to the checkpoint's input, unless `image_size` or `patch_size`
    is given: then the model adapts (see :func:`adapt`). `lora` above 0 freezes it but for
    the classifier and adapters of that rank (see :mod:`fl_split.models.lora`).
    """

    path: str
    image_size: Annotated[int, Field(ge=0)] = 0
    patch_size: Annotated[int, Field(ge=0)] = 0
    lora: Annotated[int, Field(ge=0)] = 0

    is_transformers: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("path",)

    def build(
        self, *, image_size: int, channels: int, num_classes: int, seed: int
    ) -> PreTrainedModel:
        """Load the checkpoint; a classifier of another size is drawn from `seed`.

        Raises
        ------
        ValueError
            Nothing to load at `path`, sizes that do not fit each other, or no `peft`.
        """
        del image_size, channels  # images come to the checkpoint, not the other way round
        model = load(_from_pretrained, "ViT", self.path, num_classes, seed)
        model = adapt(
            model,
            image_size=self.image_size or model.config.image_size,
            patch_size=self.patch_size or model.config.patch_size,
        )
        if self.lora:
            add_adapters(model, self.lora, seed)
        return model

    def split(self, module: Any, cut: int | str, end: int | str = 0) -> tuple[Head, Tail]:
        """Cut what :meth:`build` returned, see :func:`fl_split.models.vit.split`."""
        return split(module, cut, end)

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation, per channel, that the checkpoint was trained with."""
        return normalisation(self.path)


def _from_pretrained(path: str, **settings: Any) -> Any:
    """Load the architecture that the checkpoint's config names; a ViT if it is no DeiT."""
    from transformers import (
        DeiTForImageClassification,
        DeiTForImageClassificationWithTeacher,
        ViTConfig,
        ViTForImageClassification,
    )

    config, _ = ViTConfig.get_config_dict(path)
    if config.get("model_type") != "deit":
        return ViTForImageClassification.from_pretrained(path, **settings)
    has_two = DeiTForImageClassificationWithTeacher.__name__ in (config.get("architectures") or ())
    kind = DeiTForImageClassificationWithTeacher if has_two else DeiTForImageClassification
    return kind.from_pretrained(path, **settings)


def adapt(model: PreTrainedModel, *, image_size: int, patch_size: int) -> PreTrainedModel:
    """Give a trained model another input size and patch size.

    The patch kernel is folded: applying the new one to a patch equals resizing the
    patch to the old size (bicubic) and applying the old one. The position grid is
    interpolated (bicubic, with antialiasing). Everything else is kept.
    """
    config = model.config
    if (image_size, patch_size) == (config.image_size, config.patch_size):
        return model
    config = copy.deepcopy(config)
    config.image_size, config.patch_size = image_size, patch_size
    check_sizes(config)
    state = model.state_dict()
    embeddings = f"{model.base_model_prefix}.embeddings"
    kernel = f"{embeddings}.patch_embeddings.projection.weight"
    state[kernel] = _fold_kernel(state[kernel], patch_size)
    positions = f"{embeddings}.position_embeddings"
    patches = model.base_model.embeddings.patch_embeddings.num_patches
    state[positions] = _resize_positions(state[positions], patches, image_size // patch_size)
    with seeded(0, "model"):
        adapted = type(model)(config)
    adapted.load_state_dict(state)
    return adapted


def _fold_kernel(kernel: Tensor, patch_size: int) -> Tensor:
    basis = torch.eye(patch_size**2).reshape(-1, 1, patch_size, patch_size)
    shrinks = patch_size > kernel.shape[-1]
    resized = functional.interpolate(
        basis, size=kernel.shape[-2:], mode="bicubic", antialias=shrinks
    )
    folded = torch.einsum("pij,dcij->dcp", resized[:, 0], kernel)
    return folded.unflatten(-1, (patch_size, patch_size))


def _resize_positions(positions: Tensor, num_patches: int, grid: int) -> Tensor:
    prefix, patches = positions[:, :-num_patches], positions[:, -num_patches:]
    old = round(num_patches**0.5)
    square = patches.transpose(1, 2).unflatten(2, (old, old))  # 1 dim rows columns
    resized = functional.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2)], dim=1)
