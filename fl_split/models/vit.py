"""A transformers ViT or DeiT, cut after any block.

The two halves are made by composition: they hold the very modules of the model they come
from, so the whole model keeps its own state-dict names and sees every update.

A DeiT has a distillation token behind CLS. Where it has a second classifier too, which reads
that token, logits are the mean of both, in evaluation and in training: on labels, as there is
no teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from fl_split.models import pretrained
from fl_split.models.cut import Head, Tail, draws, insert, num_before_end, num_stages
from fl_split.models.lora import add_adapters
from fl_split.seeds import seeded
from fl_split.specs import STRICT

__all__ = ["Head", "Pretrained", "Tail", "ViT", "adapt", "insert", "split"]

ARCHITECTURES = (
    ViTForImageClassification,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
)

Size = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class ViTHead(Head):
    """Patch embedding and the first `cut` blocks."""

    has_attention = True

    def __init__(self, model: PreTrainedModel, cut: int) -> None:
        super().__init__()
        self.embeddings = model.base_model.embeddings
        self.blocks = nn.ModuleList(model.base_model.layers[:cut])
        self.encoder = nn.Identity()
        self.has_dropout = draws(self)
        _, tokens, width = self.embeddings.position_embeddings.shape
        self.smashed_shape = tokens, width
        self.num_read = len(pretrained.classifiers(model))
        size = model.config.image_size
        self.image_shape = model.config.num_channels, size, size

    def forward(self, pixels: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """Return smashed tokens (B, N, D), CLS first, and what gives :meth:`attention`."""
        tokens = self.embeddings(pixels)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        return self.encoder(self.blocks[-1](tokens)), partial(self.attention, tokens)

    def attention(self, before: Tensor) -> Tensor:
        """CLS attention row (B, N) of the last block, given that block's input (B, N, D).

        It is averaged over attention heads, taken before attention dropout, includes the
        CLS-to-CLS entry 0, sums to 1 and carries no gradient.
        """
        return _cls_attention(self.blocks[-1], before)


class ViTMiddle(Tail):
    """The blocks between the cuts of a U-shape."""

    def __init__(self, model: PreTrainedModel, cut: int, end: int | None) -> None:
        super().__init__()
        self.decoder = nn.Identity()
        self.width = self.hidden_size = model.config.hidden_size
        self.num_classes = model.config.num_labels
        self.blocks = nn.ModuleList(model.base_model.layers[cut:end])
        self.has_dropout = draws(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, T, D) for tokens (B, T, D), of which the first is CLS."""
        tokens = self.decoder(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class ViTTail(ViTMiddle):
    """All blocks after `cut`, if there are any, the final norm, the classifier or two."""

    def __init__(self, model: PreTrainedModel, cut: int) -> None:
        super().__init__(model, cut, None)
        self.norm = model.base_model.layernorm
        self.classifiers = nn.ModuleList(pretrained.classifiers(model))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, C) for tokens (B, T, D), of which each classifier reads its own."""
        normed = self.norm(super().forward(tokens))
        logits = [layer(normed[:, place]) for place, layer in enumerate(self.classifiers)]
        return torch.stack(logits).mean(dim=0)


def split(model: PreTrainedModel, cut: int | str, end: int | str = 0) -> tuple[ViTHead, ViTMiddle]:
    """Cut `model` after a block and, if `end` is given, before another one or the classifier.

    Blocks are given by number or name. Both halves share their modules with the model.

    Raises
    ------
    ValueError
        A cut leaves no block on one of its two sides.
    """
    names = [f"block{number + 1}" for number in range(model.config.num_hidden_layers)]
    blocks = num_stages(names, cut)
    head = ViTHead(model, blocks)
    if not end:
        return head, ViTTail(model, blocks)
    last = num_before_end([*names, "classifier"], blocks, end)
    head.end = ViTTail(model, last)
    return head, ViTMiddle(model, blocks, last)


@torch.no_grad()
def _cls_attention(block: Any, tokens: Tensor) -> Tensor:
    """Attention of the CLS query in `block`, (B, N), without materialising N x N.

    Per attention head q . (W x + b) = (W^T q) . x + q . b, and the last term is the same
    for every token, so softmax drops it: one D-vector per attention head replaces the
    key projection of all N tokens, and the block itself keeps its fused kernel.
    """
    attention = block.attention
    shape = (attention.num_attention_heads, attention.head_dim)
    normed = block.layernorm_before(tokens)  # batch tokens dim
    query = attention.q_proj(normed[:, 0]).unflatten(-1, shape)
    key_weight = attention.k_proj.weight.unflatten(0, shape)
    probe = torch.einsum("bhe,hed->bhd", query, key_weight)
    scores = torch.einsum("bhd,bnd->bhn", probe, normed) * attention.scaling
    return scores.softmax(dim=-1).mean(dim=1)


@dataclass(frozen=True, config=STRICT)
class ViT:
    """Vision Transformer from scratch, sizes as in transformers' ViTConfig.

    `image_size` 0 takes the size of the data set's images; images are resized to it.
    """

    hidden_size: Size = 64
    num_hidden_layers: Annotated[int, Field(ge=2)] = 4
    num_attention_heads: Size = 4
    intermediate_size: Annotated[int, Field(ge=0)] = 0
    patch_size: Size = 2
    image_size: Annotated[int, Field(ge=0)] = 0
    hidden_dropout_prob: Probability = 0.0
    attention_probs_dropout_prob: Probability = 0.0

    is_transformers: ClassVar[bool] = True

    def build(
        self, *, image_size: int, channels: int, num_classes: int, seed: int
    ) -> ViTForImageClassification:
        """Build the model for square images of `image_size` pixels, weights drawn from `seed`.

        Raises
        ------
        ValueError
            The attention heads do not divide the width, or the patches the image.
        """
        config = ViTConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size or 4 * self.hidden_size,
            patch_size=self.patch_size,
            image_size=self.image_size or image_size,
            num_channels=channels,
            num_labels=num_classes,
            hidden_dropout_prob=self.hidden_dropout_prob,
            attention_probs_dropout_prob=self.attention_probs_dropout_prob,
        )
        _check_sizes(config)
        with seeded(seed, "model"):
            return ViTForImageClassification(config)

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation, per channel, of the input this model expects."""
        return [0.5], [0.5]


@dataclass(frozen=True, config=STRICT)
class Pretrained:
    """ViT or DeiT checkpoint from a local folder or a hub name, with a new classifier if needed.

    A DeiT may be distilled, with one classifier or two (see above).

    Images are resized to the checkpoint's input, unless `image_size` or `patch_size`
    is given: then the model adapts (see :func:`adapt`). `lora` above 0 freezes it but for
    the classifier and adapters of that rank (see :mod:`fl_split.models.lora`).
    """

    path: str
    image_size: Annotated[int, Field(ge=0)] = 0
    patch_size: Annotated[int, Field(ge=0)] = 0
    lora: Annotated[int, Field(ge=0)] = 0

    is_transformers: ClassVar[bool] = True

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
        model = pretrained.load(_from_pretrained, "ViT", self.path, num_classes, seed)
        model = adapt(
            model,
            image_size=self.image_size or model.config.image_size,
            patch_size=self.patch_size or model.config.patch_size,
        )
        if self.lora:
            add_adapters(model, self.lora, seed)
        return model

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation, per channel, that the checkpoint was trained with."""
        return pretrained.normalisation(self.path)


def _from_pretrained(path: str, **settings: Any) -> Any:
    """Load the architecture that the checkpoint's config names; a ViT if it is no DeiT."""
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
    _check_sizes(config)
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


def _check_sizes(config: ViTConfig) -> None:
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads:
        raise ValueError(f"num_attention_heads must divide hidden_size {width}, got {heads}")
    if config.image_size % config.patch_size:
        size, patch = config.image_size, config.patch_size
        raise ValueError(f"patch_size must divide the image size {size}, got {patch}")
