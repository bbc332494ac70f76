"""Batch norm (Ioffe and Szegedy, ICML 2015) without hidden state, and what may replace it.

A batch norm of torch writes its running statistics in the forward pass. Here forwards are
repeated, shared by threads and thrown away, so the statistics are weights instead: those of
1/2 |running - batch|^2 per channel, whose gradient a backward pass gives like any other and
whose learning rate is the momentum. They travel, are averaged and counted with the rest.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.1
"""Share of the batch in the new running statistics, torch's default."""


class BatchNorm(nn.Module):
    """Batch norm over images (B, C, H, W), its names in a state dict as torch has them.

    One value per channel, as of one sample in the last stage, has no deviation: it becomes
    the bias and leaves the running statistics alone.

    Parameters
    ----------
    norm : nn.BatchNorm2d
        Where weight, bias, statistics and eps come from.
    keeps_statistics : bool
        Keep running statistics, for evaluation; else it, too, goes by the batch.
    """

    def __init__(self, norm: nn.BatchNorm2d, keeps_statistics: bool) -> None:
        super().__init__()
        self.eps, self.keeps_statistics = norm.eps, keeps_statistics
        self.weight, self.bias = norm.weight, norm.bias
        if keeps_statistics:
            assert norm.running_mean is not None and norm.running_var is not None
            self.running_mean = nn.Parameter(norm.running_mean.clone())
            self.running_var = nn.Parameter(norm.running_var.clone())
            self.register_buffer("num_batches_tracked", norm.num_batches_tracked)  # only a name

    def statistics(self) -> list[nn.Parameter]:
        """Return what is trained by its own rule and not by the optimiser."""
        return [self.running_mean, self.running_var] if self.keeps_statistics else []

    def forward(self, images: Tensor) -> Tensor:
        """Normalise by the batch, or in evaluation by the running statistics."""
        affine = self.weight, self.bias
        if self.keeps_statistics and not self.training:
            running = self.running_mean.detach(), self.running_var.detach()
            return torch.batch_norm(images, *affine, *running, False, 0.0, self.eps, False)
        if not self.keeps_statistics or images[:, 0].numel() == 1:
            return torch.batch_norm(images, *affine, None, None, True, 0.0, self.eps, False)
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        bias = _Observed.apply(self.bias, self.running_mean, self.running_var, mean, var)
        # A momentum of 1 writes the batch's own statistics, variance unbiased, into the two.
        return torch.batch_norm(images, self.weight, bias, mean, var, True, 1.0, self.eps, False)


class _Observed(torch.autograd.Function):
    """Pass `bias` on; backward, give running statistics their distance from the batch's.

    `mean` and `var` are filled in later, by the forward of the norm itself.
    """

    @staticmethod
    def forward(
        ctx: Any, bias: Tensor, running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor
    ) -> Tensor:
        ctx.save_for_backward(running_mean, running_var)
        ctx.batch = mean.detach(), var.detach()
        return bias.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        distances = [run - own for run, own in zip(ctx.saved_tensors, ctx.batch, strict=True)]
        return gradient, *distances, None, None


def replace(model: nn.Module, norm: str, stats: str) -> None:
    """Put, in place of every batch norm of torch, ours ("batch") or group norm ("group").

    Group norm (Wu and He, ECCV 2018) has groups of 16 channels, one of the paper's settings:
    a fixed number of groups would leave narrow layers on maps of one pixel nothing but signs.
    """
    for name, child in model.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            replace(child, norm, stats)
        elif norm == "group":
            channels = child.num_features
            groups = math.gcd(channels, max(1, channels // 16))
            setattr(model, name, nn.GroupNorm(groups, channels))
        else:
            setattr(model, name, BatchNorm(child, keeps_statistics=stats == "averaged"))
