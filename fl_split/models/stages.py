"""Convolutional models, and any other sequence of named stages, cut after one of them.

Feature maps (B, C, H, W) cross the cut as tokens (B, H W, C), positions row by row, so that
codecs need not know; a vector (B, C) is one token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fl_split.activations import activation_bytes, saved
from fl_split.models import linear_flops as flops
from fl_split.models.beside import Trace
from fl_split.models.cut import Head, Tail
from fl_split.models.norms import BatchNorm
from fl_split.models.places import num_before_end, num_stages
from fl_split.seeds import global_state, seeded

Shape = tuple[int, ...]


class Staged(Protocol):
    """A model whose forward is that of its stages, one after the other."""

    image_shape: tuple[int, int, int]

    def stages(self) -> dict[str, nn.Module]:
        """Return the stages by name, in order; the last one ends in logits."""
        ...


class ConvHead(Head):
    """The first stages of a model for images of `image_shape`.

    Attributes
    ----------
    features : tuple
        (C, H, W) or (C,), what the last stage makes of one image.
    sample_flops : tuple[int, int]
        Operations on one sample, forward alone and with backward.
    sample_bytes : int
        What autograd keeps of one sample.
    """

    def __init__(self, stages: Mapping[str, nn.Module], image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages.values())
        self.encoder = nn.Identity()
        self.image_shape = image_shape
        found = trial(self.stages, torch.zeros(1, *image_shape, device="cpu"))
        self.features, self.sample_flops, self.has_dropout, self.sample_bytes = found
        width, *positions = self.features
        self.smashed_shape = math.prod(positions), width

    def forward(
        self, pixels: Tensor, trace: Trace | None = None
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """Return smashed tokens (B, H W, C) and what refuses to give attention."""
        tokens = _tokens(_through(self.stages, pixels, trace))
        return self.encoder(tokens), partial(self.attention, tokens)

    def flops(self, samples: int) -> int:
        """Operations of forward and backward on so many images; pixels need no gradient."""
        encoder = self.smashed_shape[0] * flops.training(self.encoder)
        return samples * (encoder + self.sample_flops[1])

    def forward_flops(self, samples: int) -> int:
        """Operations of the forward alone."""
        encoder = self.smashed_shape[0] * flops.forward(self.encoder)
        return samples * (encoder + self.sample_flops[0])

    def activation_bytes(self, samples: int) -> int:
        """Return what autograd keeps of so many images, without the encoder."""
        return samples * self.sample_bytes


class ConvMiddle(Tail):
    """The stages between the cuts of a U-shape, for features of `shape`, (C, H, W) or (C,).

    Attributes
    ----------
    features : tuple
        (C, H, W) or (C,), what the last stage makes of one image.
    sample_flops : tuple[int, int]
        Operations on one sample, forward alone and with backward.
    sample_bytes : int
        What autograd keeps of one sample.
    """

    def __init__(self, stages: Mapping[str, nn.Module], shape: Shape) -> None:
        super().__init__()
        self.decoder = nn.Identity()
        self.stages = nn.Sequential(*stages.values())
        self.shape = shape
        self.width, self.num_tokens = shape[0], math.prod(shape[1:])
        found = trial(self.stages, torch.zeros(1, *shape, requires_grad=True, device="cpu"))
        self.features, self.sample_flops, self.has_dropout, self.sample_bytes = found
        self.has_batch_norm = any(isinstance(part, BatchNorm) for part in self.modules())

    def forward(self, tokens: Tensor, trace: Trace | None = None) -> Tensor:
        """Return tokens (B, H W, C) for tokens (B, H W, C)."""
        return _tokens(self.run(tokens, trace))

    def flops(self, rows: int, tokens: int) -> int:
        """Operations of forward and backward on `rows` sequences of `tokens` tokens."""
        return rows * (tokens * flops.training(self.decoder) + self.sample_flops[1])

    def forward_flops(self, rows: int, tokens: int) -> int:
        """Operations of the forward alone."""
        return rows * (tokens * flops.forward(self.decoder) + self.sample_flops[0])

    def activation_bytes(self, rows: int, tokens: int) -> int:
        """Return what autograd keeps of so many samples, without the decoder."""
        del tokens
        return rows * self.sample_bytes

    def run(self, tokens: Tensor, trace: Trace | None = None) -> Tensor:
        """Return what the last stage makes of tokens (B, H W, C)."""
        features = self.decoder(tokens).transpose(1, 2).contiguous()
        return _through(self.stages, features.view(-1, *self.shape), trace)


class ConvTail(ConvMiddle):
    """All other stages, to the last."""

    def __init__(self, stages: Mapping[str, nn.Module], shape: Shape) -> None:
        super().__init__(stages, shape)
        (self.num_classes,) = self.features

    def forward(self, tokens: Tensor, trace: Trace | None = None) -> Tensor:
        """Return logits (B, classes) for tokens (B, H W, C)."""
        return self.run(tokens, trace)


def split(model: Staged, cut: int | str, end: int | str = 0) -> tuple[ConvHead, ConvMiddle]:
    """Cut `model` after a stage and, if `end` is given, before another one.

    Stages are given by number or name. Both halves share their modules with the model.

    Raises
    ------
    ValueError
        A cut leaves no stage on one of its two sides, or names none.
    """
    stages = list(model.stages().items())
    names = [name for name, _ in stages]
    count = num_stages(names, cut)
    head = ConvHead(dict(stages[:count]), model.image_shape)
    if not end:
        return head, ConvTail(dict(stages[count:]), head.features)
    last = num_before_end(names, count, end)
    middle = ConvMiddle(dict(stages[count:last]), head.features)
    head.end = ConvTail(dict(stages[last:]), middle.features)
    middle.num_classes = head.end.num_classes
    return head, middle


def _through(stages: nn.Sequential, features: Tensor, trace: Trace | None) -> Tensor:
    """Run features through all stages; a `trace` gets the tokens after each."""
    for stage in stages:
        features = stage(features)
        if trace is not None:
            trace.hidden.append(_tokens(features))
    return features


def _tokens(features: Tensor) -> Tensor:
    """Turn feature maps (B, C, H, W) or vectors (B, C) into tokens (B, H W, C)."""
    tokens = features.flatten(2) if features.dim() > 2 else features[..., None]
    return tokens.transpose(1, 2).contiguous()


class Trial(NamedTuple):
    """What one sample tells of stages: shape made of it, operations, whether they draw, memory."""

    features: Shape
    sample_flops: tuple[int, int]
    draws: bool
    kept_bytes: int


def trial(stages: nn.Module, sample: Tensor) -> Trial:
    """Run `sample`, (1, C, H, W) or (1, C), forward and back; torch's own counter counts.

    The sample's gradient is computed if it requires one, as features at a cut do. Attention
    runs un-fused: fused, it counts as nothing on a CPU.
    """
    with (
        seeded(0, "trial"),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        before = global_state()
        with saved() as kept:
            output = stages(sample)
        draws, forward = global_state() != before, counter.get_total_flops()
        if output.requires_grad:
            output.sum().backward()  # the counter's hooks do not work with autograd.grad
    stages.zero_grad()
    operations = forward, counter.get_total_flops()
    memory = activation_bytes(kept, stages.parameters())
    return Trial(tuple(output.shape[1:]), operations, draws, memory)
