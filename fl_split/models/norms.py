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

THEIRS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d
"""Batch norms of torch that ours replaces; a class derived from one may do something else."""


class BatchNorm(nn.Module):
    """Batch norm over (B, C, ...), such as images, its names in a state dict as torch has them.

    Frozen, it goes by its running statistics in training too.

    One value per channel, as of one sample in the last stage, has no deviation: it becomes
    the bias and leaves the running statistics alone.

    Parameters
    ----------
    norm : nn.BatchNorm1d, nn.BatchNorm2d or nn.BatchNorm3d
        Where weight, bias, statistics, momentum and eps come from.
    keeps_statistics : bool
        Keep running statistics, if `norm` does, for evaluation; else it, too, goes by the batch.

    Raises
    ------
    ValueError
        The momentum of `norm` is None, which would count all batches alike.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, keeps_statistics: bool) -> None:
        super().__init__()
        self.eps = norm.eps
        self.keeps_statistics = keeps_statistics and norm.running_mean is not None
        self.weight, self.bias = norm.weight, norm.bias
        if self.keeps_statistics:
            assert norm.running_mean is not None and norm.running_var is not None
            if norm.momentum is None:
                raise ValueError("a batch norm needs a momentum, such as 0.1, got None")
            self.pace = norm.momentum / MOMENTUM
            self.running_mean = nn.Parameter(norm.running_mean.clone())
            self.running_var = nn.Parameter(norm.running_var.clone())
            self.register_buffer("num_batches_tracked", norm.num_batches_tracked)  # only a name

    def statistics(self) -> list[nn.Parameter]:
        """Return what is trained by its own rule and not by the optimiser."""
        return [self.running_mean, self.running_var] if self.keeps_statistics else []

    def forward(self, images: Tensor) -> Tensor:
        """Normalise by the batch, or in evaluation by the running statistics."""
        affine = self.weight, self.bias
        is_frozen = self.keeps_statistics and not self.running_mean.requires_grad
        if is_frozen or (self.keeps_statistics and not self.training):
            running = self.running_mean.detach(), self.running_var.detach()
            return torch.batch_norm(images, *affine, *running, False, 0.0, self.eps, False)
        if not self.keeps_statistics or images[:, 0].numel() == 1:
            return torch.batch_norm(images, *affine, None, None, True, 0.0, self.eps, False)
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        bias = mean.clone() if self.bias is None else self.bias  # zero without one
        bias = _Observed.apply(bias, self.running_mean, self.running_var, mean, var, self.pace)
        # A momentum of 1 writes the batch's own statistics, variance unbiased, into the two.
        return torch.batch_norm(images, self.weight, bias, mean, var, True, 1.0, self.eps, False)


class _Observed(torch.autograd.Function):
    """Pass `bias` on; backward, give running statistics their distance from the batch's.

    The distance is times `pace`, for a momentum of another size. `mean` and `var` are filled
    in later, by the forward of the norm itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        mean: Tensor,
        var: Tensor,
        pace: float,
    ) -> Tensor:
        ctx.save_for_backward(running_mean, running_var)
        ctx.batch, ctx.pace = (mean.detach(), var.detach()), pace
        return bias.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        pairs = zip(ctx.saved_tensors, ctx.batch, strict=True)
        distances = [ctx.pace * (running - own) for running, own in pairs]
        return gradient, *distances, None, None, None


def replace(model: nn.Module, norm: str, stats: str) -> None:
    """Put, in place of every batch norm of torch, ours ("batch") or group norm ("group").

    Group norm (Wu and He, ECCV 2018) has groups of 16 channels, one of the paper's settings:
    a fixed number of groups would leave narrow layers on maps of one pixel nothing but signs.
    """
    found = [part for part in model.modules() if type(part) in THEIRS]
    new = {part: _replacement(part, norm, stats) for part in found}
    for parent in [*model.modules()]:
        for name, child in [*parent._modules.items()]:
            if child in new:  # one that stands in two places still does
                setattr(parent, name, new[child])


def _replacement(part: Any, norm: str, stats: str) -> nn.Module:
    if norm == "batch":
        return BatchNorm(part, keeps_statistics=stats == "averaged")
    channels = part.num_features
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 16)), channels)
