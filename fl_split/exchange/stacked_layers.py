"""Layers that hold one set of weights per client, for stacked heads.

On the CPU what sums over rows runs client by client, in the order of a head alone: the same bits.
On a GPU a loop over clients would cost a launch of each kernel per client: there all clients run
in one call, and results are close.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_split.models import sparse_linear


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


class SparseLinear(Linear):
    """The same with `values` (G, nnz) in the places of `layer`, else zeros."""

    values: Tensor

    def __init__(self, layer: sparse_linear.SparseLinear) -> None:
        super().__init__()
        self.index, self.shape = layer.index, layer.shape

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The matrices (G, out, in)."""
        return sparse_linear.scattered(self.values, self.index, self.shape)


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
    """All clients forward in one call; backward as the device has it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(rows, rows.shape[-1:], None, None, eps)
        ctx.save_for_backward(rows, weight, bias, mean, rstd)
        grouped = normed.view(len(weight), -1, rows.shape[-1])
        return torch.addcmul(bias[:, None], grouped, weight[:, None]).view(rows.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        backward = norm_backward_by_client if gradient.is_cpu else norm_backward
        return *backward(gradient, *ctx.saved_tensors), None


Gradients = tuple[Tensor, Tensor, Tensor]
"""Of rows (G * B, N, D), weight and bias (G, D)."""


def norm_backward_by_client(
    gradient: Tensor, rows: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> Gradients:
    """Return the gradients of a layer norm, one call per client: sums go in the loop's order."""
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
    return torch.cat(inputs), torch.stack(weights), torch.stack(biases)


def norm_backward(
    gradient: Tensor, rows: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> Gradients:
    """Do the same in one call for all clients, without affine, and sums over their rows."""
    grouped = gradient.reshape(len(weight), -1, rows.shape[-1])
    normed = ((rows - mean) * rstd).view(grouped.shape)
    inputs, _, _ = torch.ops.aten.native_layer_norm_backward(
        (grouped * weight[:, None]).view(rows.shape),
        rows,
        rows.shape[-1:],
        mean,
        rstd,
        None,
        None,
        [True, False, False],
    )
    return inputs, (grouped * normed).sum(dim=1), grouped.sum(dim=1)


class Conv2d(nn.Module):
    """G convolutions, weight (G, out, in, h, w) and bias (G, out), on images (G * B, ...)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, stride: Any) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        """Apply convolution g to the images of client g."""
        work = convolve_by_client if images.is_cpu else convolve
        return work(images, self.weight, self.bias, self.stride)


def convolve_by_client(images: Tensor, weight: Tensor, bias: Tensor, stride: Any) -> Tensor:
    """Convolve images (G * B, C, H, W) without padding, one call per client."""
    parts = zip(images.chunk(len(weight)), weight, bias, strict=True)
    return torch.cat([functional.conv2d(*part, stride=stride) for part in parts])


def convolve(images: Tensor, weight: Tensor, bias: Tensor, stride: Any) -> Tensor:
    """Do the same by one product of patches (G, B * L, C * h * w) with kernels."""
    height, width = weight.shape[-2:]
    patches = functional.unfold(images, (height, width), stride=stride)  # images numbers places
    rows = patches.transpose(1, 2).reshape(len(weight), -1, patches.shape[1])
    found = torch.baddbmm(bias[:, None], rows, weight.flatten(2).transpose(1, 2))
    maps = found.view(len(images), patches.shape[2], -1).transpose(1, 2)
    steps = stride if isinstance(stride, tuple) else (stride, stride)
    sides = [
        (size - kernel) // step + 1
        for size, kernel, step in zip(images.shape[-2:], (height, width), steps, strict=True)
    ]
    return maps.reshape(len(images), -1, *sides)
