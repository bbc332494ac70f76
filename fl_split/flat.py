"""A module in one vector: loading, sending and optimising are one operation each."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Flat(Generic[M]):
    """Hold `module` with all its parameters as views of one float32 vector.

    Element-wise optimisers (SGD, Adam, AdamW) give the same bits on the vector as on
    the separate parameters, at a fraction of the dispatch cost.

    Attributes
    ----------
    module : nn.Module
        The module itself; its parameters and their gradients are views.
    vector : nn.Parameter
        All parameters, in the order of ``module.parameters()``; ``vector.grad`` holds
        the gradients.
    """

    def __init__(self, module: M) -> None:
        parameters = list(module.parameters())
        self.module = module
        self.vector = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
        self.vector.grad = torch.zeros_like(self.vector)
        offset = 0
        for parameter in parameters:
            window = slice(offset, offset + parameter.numel())
            parameter.data = self.vector.data[window].view_as(parameter)
            parameter.grad = self.vector.grad[window].view_as(parameter)
            offset += parameter.numel()

    def zero_grad(self) -> None:
        """Set all gradients to zero, in place."""
        assert self.vector.grad is not None
        self.vector.grad.zero_()

    def load(self, vector: Tensor | np.ndarray) -> None:
        """Copy `vector` into the parameters.

        Raises
        ------
        ValueError
            `vector` has another number of elements than the module has parameters.
        """
        vector = torch.as_tensor(vector)
        if vector.shape != self.vector.shape:
            expected, got = self.vector.numel(), tuple(vector.shape)
            raise ValueError(f"weights must be a vector of {expected} numbers, got shape {got}")
        self.vector.data.copy_(vector)

    def numpy(self) -> np.ndarray:
        """Return a copy of the parameters as one float32 vector."""
        return self.vector.detach().numpy().copy()
