"""A module in one vector: loading, sending and optimising are one operation each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fl_split.models.norms import BatchNorm
from fl_split.models.parts import Parts, parts_of
from fl_split.models.sparse_linear import sparse_layers

M = TypeVar("M", bound=nn.Module)


class Flat(Generic[M]):
    """Hold `module` with all that is trained as views of one float32 vector.

    Element-wise optimisers (SGD, Adam, AdamW) give the same bits on the vector as on
    the separate parameters, at a fraction of the dispatch cost. Gradients are returned, not
    accumulated: a model that waits holds its weights and nothing else, and several threads
    may differentiate the same one.

    Attributes
    ----------
    module : nn.Module
        The module itself; its parameters are views.
    vector : nn.Parameter
        All :func:`trained` parameters, first the :func:`private` ones, each in the order of
        ``module.parameters()``; among them running statistics of batch norms, which follow their
        own rule, see :mod:`fl_split.recipe.descent`.
    num_private : int
        How many of its first numbers stay where they are, while the others travel.
    """

    def __init__(self, module: M) -> None:
        self.module = module
        alone = private(module)
        self._parameters = [*alone, *travelling(module)]
        self.num_private = sum(parameter.numel() for parameter in alone)
        self.vector = nn.Parameter(flatten(self._parameters))
        offset = 0
        for parameter in self._parameters:
            window = slice(offset, offset + parameter.numel())
            parameter.data = self.vector.data[window].view_as(parameter)
            offset += parameter.numel()
        self.statistics = _statistics(module, self._parameters)
        self._outside: dict[Parts, Tensor] = {}

    def differentiate(
        self,
        outputs: Sequence[Tensor],
        gradients: Sequence[Tensor] | None = None,
        inputs: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Gradient of `outputs`, weighted by `gradients`, in all weights and in `inputs`.

        Returns
        -------
        gradient : Tensor
            Shaped like `vector`.
        others : list[Tensor]
            Shaped like `inputs`; zero where an input has no influence.
        """
        wanted = [*self._parameters, *inputs]
        found = torch.autograd.grad(outputs, wanted, gradients, materialize_grads=True)
        count = len(self._parameters)
        return flatten(found[:count]), list(found[count:])

    @cached_property
    def in_matrices(self) -> Tensor:
        """Where in the vector (P,) weights of matrices are, sparse or not: no norm, no bias."""
        sparse = {id(layer.values) for layer in sparse_layers(self.module)}
        flags = [(p, p.dim() > 1 or id(p) in sparse) for p in self._parameters]
        return torch.cat([torch.full((p.numel(),), flag, device=p.device) for p, flag in flags])

    def outside(self, parts: Parts) -> Tensor:
        """Return where in the vector (P,) of a head or tail weights are of none of `parts`."""
        if parts not in self._outside:
            owners = parts_of(self.module)
            flags = [torch.full((p.numel(),), owners[id(p)] not in parts) for p in self._parameters]
            self._outside[parts] = torch.cat(flags).to(self.vector.device)
        return self._outside[parts]

    @property
    def private(self) -> Tensor:
        """The first numbers of `vector`, those that stay."""
        return self.vector.detach()[: self.num_private]

    @property
    def travelling(self) -> Tensor:
        """The other numbers, all of them where nothing is private."""
        return self.vector.detach()[self.num_private :]

    def load(self, vector: Tensor | np.ndarray) -> None:
        """Copy `vector` into the parameters that travel, from wherever it is.

        Raises
        ------
        ValueError
            `vector` has another number of elements than these parameters.
        """
        _copy(vector, self.travelling)

    def load_private(self, vector: Tensor) -> None:
        """Do the same with the parameters that stay."""
        _copy(vector, self.private)

    def load_all(self, vector: Tensor) -> None:
        """Do the same with all of them, in the order of `vector`."""
        _copy(vector, self.vector.detach())

    def numpy(self) -> np.ndarray:
        """Return a copy of the parameters that travel as one float32 vector."""
        host = self.travelling.cpu()
        return host.numpy().copy() if self.vector.is_cpu else host.numpy()


def _copy(vector: Tensor | np.ndarray, into: Tensor) -> None:
    if tuple(vector.shape) != tuple(into.shape):
        expected, got = into.numel(), tuple(vector.shape)
        raise ValueError(f"weights must be a vector of {expected} numbers, got shape {got}")
    if into.is_cpu:
        np.copyto(into.numpy(), np.asarray(vector))  # which may be read-only
        return
    found = vector if isinstance(vector, Tensor) else torch.from_numpy(np.array(vector))
    into.copy_(found)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Copy tensors into one vector, without gradient."""
    with torch.no_grad():
        joined = torch._utils._flatten_dense_tensors(tensors)
        return joined.clone() if len(tensors) == 1 else joined  # one alone is but viewed


def trained(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of `module` that are not frozen."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def private(module: nn.Module) -> list[nn.Parameter]:
    """Return those of what is beside a half and stays with each client, as private exits."""
    parts = [part for part in getattr(module, "beside", ()) if part.is_private]
    return [parameter for part in parts for parameter in trained(part)]


def travelling(module: nn.Module) -> list[nn.Parameter]:
    """Return all other ones: what is sent and averaged."""
    alone = {id(parameter) for parameter in private(module)}
    return [parameter for parameter in trained(module) if id(parameter) not in alone]


def copy_trained(module: M) -> M:
    """Copy `module`, all but what is frozen and where sparse weights stand: that is shared."""
    fixed: list[Tensor] = [p for p in module.parameters() if not p.requires_grad]
    fixed += [layer.index for layer in sparse_layers(module)]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in fixed})


def _statistics(module: nn.Module, parameters: Sequence[nn.Parameter]) -> Tensor | None:
    """Return where in the vector running statistics are; None if there are none."""
    norms = (part for part in module.modules() if isinstance(part, BatchNorm))
    known = {id(statistic) for norm in norms for statistic in norm.statistics()}
    flags = [torch.full((p.numel(),), id(p) in known, device=p.device) for p in parameters]
    return torch.cat(flags).nonzero().flatten() if known else None
