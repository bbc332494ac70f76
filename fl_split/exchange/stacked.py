"""Heads of several clients as one: stacked weights, batched products, the same bits.

With few tokens per client most of a step is the cost of calling kernels. Running G clients
through the very code of the head, with layers that hold one set of weights per client, calls
each kernel once for all of them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_split.codecs import Codec, Mixed, Smashed
from fl_split.exchange.split import encode, pair
from fl_split.flat import Flat
from fl_split.models.cut import Head
from fl_split.payload import Payload
from fl_split.seeds import StepId, generator

MEMBERS = 8
"""Most clients in a stack: more gain little, and their activations leave the cache."""

TRIALS = 3
"""Times that loop and stack run against each other; the best of each counts."""


class Linear(nn.Module):
    """G linear layers, weight (G, out, in) and bias (G, out) or None, on rows (G * B, ...)."""

    weight: Tensor
    bias: Tensor | None = None

    def forward(self, rows: Tensor) -> Tensor:
        """Apply layer g to the rows of client g."""
        inputs = rows.reshape(len(self.weight), -1, rows.shape[-1])
        transposed = self.weight.transpose(1, 2)
        if self.bias is None:
            outputs = inputs @ transposed
        else:
            outputs = torch.baddbmm(self.bias[:, None], inputs, transposed)
        return outputs.view(*rows.shape[:-1], -1)


class LayerNorm(nn.Module):
    """G layer norms, weight and bias (G, D), on rows (G * B, N, D)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, rows: Tensor) -> Tensor:
        """Apply norm g to the rows of client g."""
        return _LayerNorm.apply(rows, self.weight, self.bias, self.eps)


class _LayerNorm(torch.autograd.Function):
    """All clients forward in one call; backward one call each, to sum in the loop's order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(rows, rows.shape[-1:], None, None, eps)
        ctx.save_for_backward(rows, weight, bias, mean, rstd)
        grouped = normed.view(len(weight), -1, rows.shape[-1])
        return torch.addcmul(bias[:, None], grouped, weight[:, None]).view(rows.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rows, weight, bias, mean, rstd = ctx.saved_tensors
        split = [part.chunk(len(weight)) for part in (gradient, rows, mean, rstd)]
        found = [
            torch.ops.aten.native_layer_norm_backward(
                grad, part, rows.shape[-1:], average, scale, own_weight, own_bias, [True] * 3
            )
            for grad, part, average, scale, own_weight, own_bias in zip(
                *split, weight, bias, strict=True
            )
        ]
        inputs, weights, biases = zip(*found, strict=True)
        return torch.cat(inputs), torch.stack(weights), torch.stack(biases), None


class Conv2d(nn.Module):
    """G convolutions, weight (G, out, in, h, w) and bias (G, out), on images (G * B, ...)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, stride: Any) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        """Apply convolution g to the images of client g."""
        parts = zip(images.chunk(len(self.weight)), self.weight, self.bias, strict=True)
        return torch.cat([functional.conv2d(*part, stride=self.stride) for part in parts])


@dataclass(frozen=True, eq=False)
class StackedForward:
    """A forward of G clients with its graph.

    Attributes
    ----------
    tokens : Tensor
        (G * B, N, D), the heads' output.
    before : Tensor
        (G * B, N, D), the input of the last block, without graph.
    weights : list[Tensor]
        The parameters, each (G, ...).
    """

    tokens: Tensor
    before: Tensor
    weights: list[Tensor]

    @property
    def members(self) -> int:
        """Number of clients G."""
        return len(self.weights[0])

    def differentiate(self, gradient: Tensor) -> Tensor:
        """Return the gradients (G, P) of the flat weights for that of the tokens; once only."""
        found = torch.autograd.grad(self.tokens, self.weights, gradient)
        return torch.cat([part.flatten(1) for part in found], dim=1)


class StackedHead:
    """Any number of copies of `head` with weights of their own.

    Raises
    ------
    ValueError
        `head` draws random numbers or holds layers that have no stacked counterpart.
    """

    def __init__(self, head: Head) -> None:
        if not head.can_stack:
            raise ValueError("only ViT heads without dropout can be stacked")
        self._shapes = [parameter.shape for parameter in head.parameters()]
        names = [name for name, _ in head.named_parameters()]
        self._head: Any = copy.deepcopy(head)
        _swap(self._head)
        self._slots: list[tuple[nn.Module, str]] = []
        for name in names:
            path, _, attribute = name.rpartition(".")
            owner = self._head.get_submodule(path)
            owner._parameters.pop(attribute, None)
            self._slots.append((owner, attribute))
        if left := [name for name, _ in self._head.named_parameters()]:
            raise ValueError(f"{left[0]} cannot be stacked")

    def run(self, vectors: Sequence[Tensor], pixels: Tensor) -> StackedForward:
        """Forward of G clients with flat weights (P,) each on images (G * B, C, H, W)."""
        members = len(vectors)
        with torch.no_grad():
            columns = torch.stack(list(vectors)).split([s.numel() for s in self._shapes], dim=1)
        weights = [
            column.reshape(members, *shape).requires_grad_()
            for column, shape in zip(columns, self._shapes, strict=True)
        ]
        for (owner, attribute), weight in zip(self._slots, weights, strict=True):
            if owner is self._head.embeddings:  # (G, 1, N, D), which the module adds to its rows
                rows = weight.expand(-1, len(pixels) // members, -1, -1)
                setattr(owner, attribute, rows.reshape(len(pixels), *weight.shape[2:]))
            else:
                setattr(owner, attribute, weight)
        tokens = self._head.embeddings(pixels)
        for block in self._head.blocks[:-1]:
            tokens = block(tokens)
        sent = self._head.encoder(self._head.blocks[-1](tokens))
        return StackedForward(sent, tokens.detach(), weights)


@dataclass(frozen=True)
class StackSlot:
    """One client's place in a stack: its number, and where its codec's graph begins."""

    forward: StackedForward
    number: int
    tokens: Tensor


def smash_together(
    stacked: StackedHead,
    heads: Sequence[Flat[Head]],
    codec: Codec,
    pixels: Tensor,
    labels: Tensor,
    num_classes: int,
    steps: Sequence[StepId],
    mixed: Sequence[Mixed | None],
) -> list[tuple[Payload, StackSlot]]:
    """Do what :meth:`Split.smash` does, for G clients with as many images each.

    `pixels` (G * B, C, H, W) and `labels` (G * B,) go client by client.
    """
    forward = stacked.run([head.vector for head in heads], pixels)
    whole = forward.tokens.detach(), forward.before, labels
    parts = [part.chunk(forward.members) for part in whole]
    found = []
    for number, (tokens, before, targets) in enumerate(zip(*parts, strict=True)):
        slot = StackSlot(forward, number, tokens.requires_grad_())
        head = heads[number].module
        attention = partial(head.attention, before)
        known = slot.tokens, attention, targets, num_classes, head.num_read, mixed[number]
        smashed = Smashed(*known)
        found.append((encode(codec, smashed, steps[number]), slot))
    return found


def head_gradients(
    slots: Sequence[StackSlot], payloads: Sequence[Payload], gradients: Sequence[Payload]
) -> Tensor:
    """Do what :func:`~fl_split.exchange.split.head_gradient` does, for all clients of a stack.

    `slots` are all those of one forward, in order. Returns (G, P).

    Raises
    ------
    ValueError
        A gradient does not have the names and shapes of its payload's values.
    """
    parts = []
    for slot, payload, gradient in zip(slots, payloads, gradients, strict=True):
        values, weights = pair(payload, gradient)
        found = torch.autograd.grad(values, [slot.tokens], weights, materialize_grads=True)
        parts.append(found[0])
    return slots[0].forward.differentiate(torch.cat(parts))


def _swap(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Linear())
        elif isinstance(child, nn.LayerNorm):
            setattr(module, name, LayerNorm(child.eps))
        elif isinstance(child, nn.Conv2d):
            setattr(module, name, Conv2d(child.stride))
        else:
            _swap(child)


def is_faster(
    stacked: StackedHead,
    head: Head,
    shape: Sequence[int],
    clock: Callable[[], float] = time.thread_time,
) -> bool:
    """Try a stack of copies of `head` on batches of `shape` (B, C, H, W) against one by one.

    True if the stack takes less CPU time on this machine, by `clock`, and, which kernels do
    not promise, gives the same bits.
    """
    draw, members = generator(0, "stacked"), MEMBERS
    heads = [Flat(copy.deepcopy(head)) for _ in range(members)]
    for flat in heads:
        noise = torch.randn(flat.vector.shape, generator=draw, device="cpu")
        flat.load(flat.vector.detach() + 0.01 * noise)
    pixels = torch.randn(members * shape[0], *shape[1:], generator=draw, device="cpu")
    with torch.no_grad():
        sent = head(pixels)[0]
    weights = torch.randn(sent.shape, generator=draw, device="cpu")

    def loop() -> tuple[Tensor, Tensor]:
        outputs, gradients = [], []
        for flat, images, weight in zip(
            heads, pixels.chunk(members), weights.chunk(members), strict=True
        ):
            outputs.append(flat.module(images)[0])
            gradients.append(flat.differentiate(outputs[-1:], [weight])[0])
        return torch.cat(outputs), torch.stack(gradients)

    def stack() -> tuple[Tensor, Tensor]:
        found = stacked.run([flat.vector for flat in heads], pixels)
        return found.tokens, found.differentiate(weights)

    seconds: dict[Callable[[], Any], list[float]] = {loop: [], stack: []}
    for _ in range(TRIALS):
        results = []
        for function, times in seconds.items():
            began = clock()
            results.append(function())
            times.append(clock() - began)
        if not all(map(torch.equal, *results)):
            return False
    return min(seconds[stack]) < min(seconds[loop])
