"""A transformers ViT or DeiT, cut after any block.

The two halves are made by composition: they hold the very modules of the model they come
from, so the whole model keeps its own state-dict names and sees every update.

A DeiT has a distillation token behind CLS. Where a second classifier reads it, logits are the
mean of both, in evaluation and in training: on labels, as there is no teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fl_split.models import linear_flops as flops
from fl_split.models.attention import cls_attention
from fl_split.models.beside import Trace
from fl_split.models.cut import Head, Tail, draws, mean
from fl_split.models.kept import kept_bytes
from fl_split.models.places import num_before_end, num_stages
from fl_split.models.preprocessing import Preprocessing
from fl_split.models.selector import Course
from fl_split.models.sparse_linear import dense_bytes
from fl_split.ragged import run
from fl_split.seeds import seeded
from fl_split.specs import STRICT

if TYPE_CHECKING:  # importing costs a second or two, which only who builds a ViT should pay
    from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

Size = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class ViTHead(Head):
    """Patch embedding and the first `cut` blocks."""

    has_attention = True

    def __init__(self, model: PreTrainedModel, cut: int) -> None:
        super().__init__()
        self.embeddings = model.base_model.embeddings
        self.blocks = nn.ModuleList(blocks(model)[:cut])
        self.encoder = nn.Identity()
        self.has_dropout = draws(self)
        _, tokens, width = self.embeddings.position_embeddings.shape
        self.smashed_shape = tokens, width
        self.num_read = len(classifiers(model))
        size = model.config.image_size
        self.image_shape = model.config.num_channels, size, size

    @property
    def can_stack(self) -> bool:
        """True without dropout, with nothing frozen, no end, no selector and nothing beside."""
        is_trained = all(parameter.requires_grad for parameter in self.parameters())
        is_alone = self.end is None and self.selector is None and not self.beside
        return is_trained and is_alone and not self.has_dropout

    def forward(
        self, pixels: Tensor, trace: Trace | None = None
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """Return smashed tokens (B, N, D), CLS first, and what gives :meth:`attention`."""
        tokens = before = self.embeddings(pixels)
        if self.selector is not None:
            before, tokens, counts = self.selector(self.blocks, tokens, trace)
            return run(self.encoder, tokens, counts), partial(self.attention, before, counts)
        for block in self.blocks:
            before, tokens = tokens, block(tokens)
            if trace is not None:
                trace.hidden.append(tokens)
        return self.encoder(tokens), partial(self.attention, before)

    def attention(self, before: Tensor, counts: Tensor | None = None) -> Tensor:
        """CLS attention row (B, N) of the last block, given that block's input (B, N, D).

        It is averaged over attention heads, taken before attention dropout, includes the
        CLS-to-CLS entry 0, sums to 1 and carries no gradient. Beyond `counts` (B,) it is 0.
        """
        return run(partial(cls_attention, self.blocks[-1]), before, counts)

    def flops(self, samples: int) -> int:
        """Operations of forward and backward on so many images; pixels need no gradient."""
        return samples * mean(map(self._training, self.courses))

    def forward_flops(self, samples: int) -> int:
        """Operations of the forward alone; the mean over what may become of tokens."""
        return samples * mean(map(self._forward, self.courses))

    def activation_bytes(self, samples: int) -> int:
        """Estimate what autograd keeps of so many images, at most, without the encoder."""
        counts, width = self.courses[-1].in_blocks, self.smashed_shape[1]
        groups = {
            n: [one for one, m in zip(self.blocks, counts, strict=True) if m == n] for n in counts
        }
        kept = sum(kept_bytes(blocks, tokens, width) for tokens, blocks in groups.items())
        return samples * (4 * math.prod(self.image_shape) + kept) + dense_bytes(self.blocks)

    def _training(self, course: Course) -> int:
        patches, width = self.embeddings.patch_embeddings.projection.weight, self.smashed_shape[1]
        total = course.sent * flops.training(self.encoder)
        total += self._patch_flops() * (1 + patches.requires_grad)
        needs_inputs = flops.is_trained(self.embeddings)
        if self.selector is not None:
            total += self.selector.flops(self.blocks, course)
            needs_inputs = needs_inputs or self.selector.num_extra > 0
        for block, tokens in zip(self.blocks, course.in_blocks, strict=True):
            total += flops.block_training(block, tokens, width, needs_inputs)
            needs_inputs = needs_inputs or flops.is_trained(block)
        return total

    def _forward(self, course: Course) -> int:
        total = course.sent * flops.forward(self.encoder) + self._patch_flops()
        if self.selector is not None:
            total += self.selector.forward_flops(self.blocks, course)
        for block, tokens in zip(self.blocks, course.in_blocks, strict=True):
            total += flops.blocks_forward([block], tokens, self.smashed_shape[1])
        return total

    def _patch_flops(self) -> int:
        made = self.embeddings.patch_embeddings
        return 2 * made.num_patches * made.projection.weight.numel()


class ViTMiddle(Tail):
    """The blocks between the cuts of a U-shape."""

    def __init__(self, model: PreTrainedModel, cut: int, end: int | None) -> None:
        super().__init__()
        self.decoder = nn.Identity()
        self.width = self.hidden_size = model.config.hidden_size
        self.num_classes = model.config.num_labels
        self.blocks = nn.ModuleList(blocks(model)[cut:end])
        self.has_dropout = draws(self)

    def forward(self, tokens: Tensor, trace: Trace | None = None) -> Tensor:
        """Return tokens (B, T, D) for tokens (B, T, D), of which the first is CLS."""
        tokens = self.decoder(tokens)
        for block in self.blocks:
            tokens = block(tokens)
            if trace is not None:
                trace.hidden.append(tokens)
        return tokens

    def flops(self, rows: int, tokens: int) -> int:
        """Operations of forward and backward on `rows` sequences of `tokens` tokens."""
        blocks = (flops.block_training(block, tokens, self.hidden_size) for block in self.blocks)
        return rows * (tokens * flops.training(self.decoder) + sum(blocks))

    def forward_flops(self, rows: int, tokens: int) -> int:
        """Operations of the forward alone."""
        total = tokens * flops.forward(self.decoder)
        return rows * (total + flops.blocks_forward(self.blocks, tokens, self.hidden_size))

    def activation_bytes(self, rows: int, tokens: int) -> int:
        """Estimate what autograd keeps of so many sequences, without the decoder."""
        return rows * kept_bytes(self.blocks, tokens, self.hidden_size)


class ViTTail(ViTMiddle):
    """All blocks after `cut`, if there are any, the final norm, the classifier or two."""

    def __init__(self, model: PreTrainedModel, cut: int) -> None:
        super().__init__(model, cut, None)
        self.norm = model.base_model.layernorm
        self.classifiers = nn.ModuleList(classifiers(model))

    def forward(self, tokens: Tensor, trace: Trace | None = None) -> Tensor:
        """Return logits (B, C) for tokens (B, T, D), of which each classifier reads its own."""
        return self.read(self.norm(super().forward(tokens, trace)))

    def classifying_layers(self) -> list[nn.Module]:
        """Return the classifiers."""
        return [*self.classifiers]

    def read(self, normed: Tensor) -> Tensor:
        """Return logits (B, C) for normed tokens (B, T, D)."""
        logits = [layer(normed[:, place]) for place, layer in enumerate(self.classifiers)]
        return torch.stack(logits).mean(dim=0)

    def flops(self, rows: int, tokens: int) -> int:
        """Operations of forward and backward; a classifier reads one token of a sequence."""
        return super().flops(rows, tokens) + rows * flops.training(self.classifiers)

    def forward_flops(self, rows: int, tokens: int) -> int:
        """Operations of the forward alone."""
        return super().forward_flops(rows, tokens) + rows * flops.forward(self.classifiers)

    def activation_bytes(self, rows: int, tokens: int) -> int:
        """Do the same with the input of the final norm."""
        return super().activation_bytes(rows, tokens) + rows * 4 * tokens * self.hidden_size


def split(
    model: PreTrainedModel,
    cut: int | str,
    end: int | str = 0,
    head_kind: type[ViTHead] = ViTHead,
    tail_kind: type[ViTTail] = ViTTail,
) -> tuple[ViTHead, ViTMiddle]:
    """Cut `model` after a block and, if `end` is given, before another one or the classifier.

    Blocks are given by number or name. Both halves share their modules with the model. A
    relative of the ViT has kinds of its own.

    Raises
    ------
    ValueError
        A cut leaves no block on one of its two sides.
    """
    names = [f"block{number + 1}" for number in range(model.config.num_hidden_layers)]
    count = num_stages(names, cut)
    head = head_kind(model, count)
    if not end:
        return head, tail_kind(model, count)
    last = num_before_end([*names, "classifier"], count, end)
    head.end = tail_kind(model, last)
    return head, ViTMiddle(model, count, last)


def blocks(model: Any) -> Any:
    """Return the blocks of the backbone, which DINOv2 keeps in an encoder."""
    backbone = model.base_model
    return backbone.encoder.layer if hasattr(backbone, "encoder") else backbone.layers


def classifiers(model: Any) -> list[Any]:
    """What is behind the backbone: the classifier of token 0, that of token 1 if there is one."""
    return [part for part in model.children() if part is not model.base_model]


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
        from transformers import ViTConfig, ViTForImageClassification

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
        check_sizes(config)
        with seeded(seed, "model"):
            return ViTForImageClassification(config)

    def split(self, module: Any, cut: int | str, end: int | str = 0) -> tuple[Head, Tail]:
        """Cut what :meth:`build` returned, see :func:`split`."""
        return split(module, cut, end)

    def preprocessing(self) -> Preprocessing:
        """Return what is done to images before this model sees them."""
        return Preprocessing()


def check_sizes(config: ViTConfig) -> None:
    """Raise ValueError unless attention heads divide the width, and patches the image."""
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads:
        raise ValueError(f"num_attention_heads must divide hidden_size {width}, got {heads}")
    if config.image_size % config.patch_size:
        size, patch = config.image_size, config.patch_size
        raise ValueError(f"patch_size must divide the image size {size}, got {patch}")
