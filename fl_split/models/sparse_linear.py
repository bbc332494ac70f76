"""Linear layers with few weights: the values alone are trained, sent, averaged and optimised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_split.models.sparsity import Sparsity


class SparseLinear(nn.Module):
    """A linear layer that has weights in few places.

    The product is that of the dense matrix, which is made of the values in each forward. With
    all weights there it is `nn.Linear`, bit for bit.

    Parameters
    ----------
    layer : nn.Linear
        Where weights and bias come from.
    mask : Tensor
        Where it has weights: bool (out, in).
    scale : float
        What the weights are multiplied by.

    Attributes
    ----------
    values : nn.Parameter
        The weights (nnz,), row by row of the matrix.
    index : Tensor
        Where they stand in the flat matrix (nnz,); neither trained nor sent.
    """

    index: Tensor
    bias: nn.Parameter | None

    def __init__(self, layer: nn.Linear, mask: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.shape = layer.out_features, layer.in_features
        index = mask.flatten().nonzero().flatten().to(layer.weight.device)
        self.register_buffer("index", index, persistent=False)
        self.values = nn.Parameter(layer.weight.detach().flatten()[index] * scale)
        self.register_parameter("bias", layer.bias)

    @property
    def weight(self) -> Tensor:
        """The matrix (out, in), zero where no weights are."""
        return scattered(self.values, self.index, self.shape)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs (..., out) for inputs (..., in)."""
        return functional.linear(inputs, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return its sizes."""
        outputs, inputs = self.shape
        return f"{inputs} -> {outputs}, {len(self.index)} weights"

    def dense(self) -> nn.Linear:
        """Return the ordinary layer of the same matrix and bias."""
        outputs, inputs = self.shape
        layer = nn.Linear(inputs, outputs, bias=self.bias is not None, device="meta")
        layer.weight, layer.bias = nn.Parameter(self.weight.detach()), cast(nn.Parameter, self.bias)
        return layer


def scattered(values: Tensor, index: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return matrices (..., out, in) with `values` (..., nnz) at `index` (nnz,), else zero."""
    empty = values.new_zeros(*values.shape[:-1], math.prod(shape))
    return empty.scatter(-1, index.expand_as(values), values).unflatten(-1, shape)


def sparse_layers(module: nn.Module) -> list[SparseLinear]:
    """Return all sparse layers of `module`."""
    return [part for part in module.modules() if isinstance(part, SparseLinear)]


def dense_bytes(module: nn.Module) -> int:
    """Bytes of the matrices that a forward makes of sparse values, and autograd keeps."""
    return sum(4 * math.prod(layer.shape) for layer in sparse_layers(module))


class _Place(NamedTuple):
    """A linear layer of a head: its number, the block or part that owns it, its name there."""

    number: int
    owner: nn.Module
    name: str
    layer: nn.Linear


def _places(head: nn.Module, layers: str) -> Iterator[_Place]:
    """Yield the linear layers of all blocks, or of their MLPs.

    All are numbered: a layer has the same mask, wherever the cut is and whatever is frozen.
    """
    found = [
        (block, name, layer)
        for block in cast(nn.ModuleList, head.blocks)
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    for number, (block, path, layer) in enumerate(found):
        owner, _, name = path.rpartition(".")
        if layers == "all" or path.startswith("mlp."):
            yield _Place(number, block.get_submodule(owner), name, layer)


def sparsify(head: nn.Module, sparsity: Sparsity, is_trained: bool = False) -> list[str]:
    """Make linear layers in the blocks of `head` sparse, those that are not frozen; say which.

    Weights that stay keep their values if the model `is_trained` already. Else they are scaled by
    1 / sqrt(density), so that outputs have the variance that the model's author meant.

    Raises
    ------
    ValueError
        `head` has no such layers, adapters, or none that is trained; or one would have no weights.
    """
    if not sparsity.layers:
        return []
    if not isinstance(getattr(head, "blocks", None), nn.ModuleList):
        raise ValueError(
            "it is for blocks of a Transformer, and this model has none; leave sparsity at "
            "'none()', or take another model, as vit()"
        )
    if any(hasattr(part, "base_layer") for part in head.modules()):
        raise ValueError(
            "it does not go with lora, which freezes the layers that would be sparse; leave "
            "sparsity at 'none()', or lora at 0"
        )
    found = list(_places(head, sparsity.layers))
    places = [place for place in found if place.layer.weight.requires_grad]
    if not places:
        raise ValueError(
            "the client's blocks have no such layer that is trained; freeze less, or leave "
            "sparsity at 'none()'"
        )
    notes, all_weights, kept = dict[str, None](), 0, 0
    for number, owner, name, layer in places:
        mask = sparsity.mask(layer.out_features, layer.in_features, number)
        _check(sparsity, mask, layer)
        share = int(mask.sum()) / mask.numel()
        setattr(owner, name, SparseLinear(layer, mask, 1.0 if is_trained else share**-0.5))
        kept, all_weights = kept + int(mask.sum()), all_weights + mask.numel()
        if (wanted := getattr(sparsity, "density", share)) != share:
            shape = " x ".join(map(str, sorted(layer.weight.shape)))
            notes[f"{shape} weights cannot have density {wanted:g}; {share:.4g} is nearest"] = None
    count = f"{len(places)} linear layers of the head have {kept:,} of {all_weights:,} weights"
    count += "; frozen ones stay dense" if len(places) < len(found) else ""
    return [f"sparsity: {count}", *(f"sparsity: {note}" for note in notes)]


def _check(sparsity: Sparsity, mask: Tensor, layer: nn.Linear) -> None:
    """Raise ValueError unless `mask`, which others may have made, is one of `layer`."""
    if mask.dtype != torch.bool or mask.shape != layer.weight.shape or not mask.any():
        shape = tuple(layer.weight.shape)
        raise ValueError(
            f"{sparsity!r}: mask must return bool of shape {shape}, somewhere true, got "
            f"{mask.dtype} of shape {tuple(mask.shape)}, true in {int(mask.sum())} places"
        )
