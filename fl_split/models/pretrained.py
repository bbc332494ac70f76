"""Checkpoints of transformers, from a local folder or a hub name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from fl_split.models import checkpoint, dinov2, files, processor, timm_vit
from fl_split.models.checkpoint import Loaded
from fl_split.models.cut import Head, Tail
from fl_split.models.lora import add_adapters
from fl_split.models.preprocessing import Preprocessing
from fl_split.models.vit import check_sizes, split
from fl_split.specs import STRICT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VITS = {"vit", "vit_mae", "vit_msn"}
"""Values of model_type whose weights, or whose encoder's, are those of a ViT."""

USABLE = "ViT, ViT-MAE and ViT-MSN, DeiT, DINOv2 without registers, and plain ViTs of timm"
"""What :class:`Pretrained` takes."""


@dataclass(frozen=True, config=STRICT)
class Pretrained:
    """A checkpoint of a ViT or a relative, from a local folder or a hub name.

    It may be a ViT (also of ViT-MAE or ViT-MSN), a DINOv2 without registers, a plain ViT of
    timm, or a DeiT, distilled with one classifier or two (see :mod:`fl_split.models.vit`). Its
    classifier is drawn anew if the data have another number of classes.

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
            Nothing to load at `path`, another architecture, a config.json that does not fit
            the weights, sizes that do not fit each other, or no `peft`.
        """
        sizes = {"image_size": image_size, "channels": channels, "num_classes": num_classes}
        return self.load(**sizes, seed=seed).module

    def load(self, *, image_size: int, channels: int, num_classes: int, seed: int) -> Loaded:
        """Do the same, and say what was decided about the checkpoint."""
        del image_size, channels  # images come to the checkpoint, not the other way round
        found, weights = _read(self.path)
        kind = _kind(self.path, found)
        own = {key: value for key, value in found.items() if key != "model_type"}
        config = checkpoint.configured(kind, own, self.path, num_classes)
        if hasattr(config, "use_mask_token"):
            config.use_mask_token = False  # no image is masked: it would never be trained
        size = self.image_size or config.image_size
        loaded = checkpoint.load(kind, self.path, config, "ViT", seed, weights)
        before: Any = loaded.module
        model = adapt(
            before, image_size=size, patch_size=self.patch_size or before.config.patch_size
        )
        if self.lora:
            add_adapters(model, self.lora, seed)
        notes = (*loaded.notes, *_changed(before.config, model.config))
        return Loaded(model, notes, loaded.class_names)

    def split(self, module: Any, cut: int | str, end: int | str = 0) -> tuple[Head, Tail]:
        """Cut what :meth:`build` returned, see :func:`fl_split.models.vit.split`."""
        cutter = dinov2.split if module.config.model_type == "dinov2" else split
        return cutter(module, cut, end)

    def preprocessing(self) -> Preprocessing:
        """Return what was done to the images that the checkpoint was trained with.

        Raises
        ------
        ValueError
            Its preprocessor_config.json makes no sense; the message names file and key.
        """
        found = checkpoint.settings(self.path, "ViT")
        if checkpoint.is_timm(found):
            return processor.of_timm(self.path, found, self.image_size)
        size = found.get("image_size", DEFAULT_SIZE)
        return processor.read(
            self.path, found.get("num_channels", 3), size, self.image_size or size
        )


DEFAULT_SIZE = 224
"""Image size of a config.json that gives none, as transformers has it."""


def _read(path: str) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """Return settings as in config.json; and weights, where they are not as transformers' are."""
    found = checkpoint.settings(path, "ViT")
    if not checkpoint.is_timm(found):
        return found, None
    try:
        return timm_vit.converted(found, files.read_weights(path))
    except Exception as error:  # every file format fails in its own way
        raise ValueError(
            f"cannot load a ViT from {path!r}, {checkpoint.described(found)}: {error}"
        ) from None


def _kind(path: str, found: Mapping[str, Any]) -> type[Any]:
    """Return the class of transformers that a config.json is for.

    Raises
    ------
    ValueError
        It is for none that can be cut here.
    """
    import transformers

    kind = str(found.get("model_type", "vit"))
    if kind in VITS:
        return transformers.ViTForImageClassification
    if kind == "dinov2":
        return transformers.Dinov2ForImageClassification
    if kind == "deit":
        two = transformers.DeiTForImageClassificationWithTeacher
        has_two = two.__name__ in (found.get("architectures") or ())
        return two if has_two else transformers.DeiTForImageClassification
    hint = "resnet18(path=...) takes a ResNet-18; " if kind == "resnet" else ""
    raise ValueError(
        f"cannot load a ViT from {path!r}: it is {checkpoint.described(found)}; {hint}"
        f"pretrained(path=...) takes {USABLE}"
    )


def _changed(before: Any, after: Any) -> list[str]:
    """Say what :func:`adapt` did to a model of config `before`."""
    notes = []
    old, new = (config.image_size // config.patch_size for config in (before, after))
    if old != new:
        notes.append(
            f"position embeddings are interpolated from {old} x {old} to {new} x {new} patches"
        )
    if before.patch_size != after.patch_size:
        notes.append(
            f"patches of {before.patch_size} pixels become patches of {after.patch_size}: the "
            "kernel is folded"
        )
    return notes


def adapt(model: PreTrainedModel, *, image_size: int, patch_size: int) -> PreTrainedModel:
    """Give a trained model another input size and patch size.

    The patch kernel is folded: applying the new one to a patch equals resizing the
    patch to the old size (bicubic) and applying the old one. The position grid is
    interpolated (bicubic, with antialiasing). Everything else is kept, and shared with `model`.
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
    adapted: PreTrainedModel = checkpoint.rebuilt(type(model), config, state)
    return adapted


def _fold_kernel(kernel: Tensor, patch_size: int) -> Tensor:
    basis = torch.eye(patch_size**2, device=kernel.device).reshape(-1, 1, patch_size, patch_size)
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
