"""Closed forms of floating-point operations that models share; a multiply-add counts two.

A linear layer costs twice its weights for every token, forward; a sparse one has few. Backward
costs that again for the gradient of the inputs and again for the gradient of the weights; only
pixels and frozen weights need none. Of experts so many are counted as a token is sent to, also
where they have no room for it. Norms, activations, pooling and softmax are left out, as torch's
counter leaves them out. The arithmetic of codecs is measured in time instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from fl_split.models.mixture import Mixture
from fl_split.models.sparse_linear import SparseLinear

LINEAR = nn.Linear, SparseLinear


def forward(module: nn.Module) -> int:
    """Operations of the forward of all linear layers in `module`, on one token."""
    return sum(2 * _weights(layer).numel() for _, layer in layers(module))


def training(module: nn.Module) -> int:
    """Operations of forward and backward of all linear layers in `module`, on one token."""
    return sum(of_layer(layer) for _, layer in layers(module))


def layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear | SparseLinear]]:
    """Yield the linear layers that one token runs through, with their names."""
    parts = [part for part in module.modules() if isinstance(part, Mixture)]
    idle = {layer for part in parts for layer in part.idle()}
    for name, layer in module.named_modules():
        if isinstance(layer, LINEAR) and layer not in idle:
            yield name, layer


def is_trained(module: nn.Module) -> bool:
    """Tell whether anything in `module` is trained."""
    return any(parameter.requires_grad for parameter in module.parameters())


def of_layer(layer: nn.Linear | SparseLinear, needs_inputs: bool = True) -> int:
    """Operations of forward and backward of `layer` on one token.

    `needs_inputs` says whether the gradient of the layer's inputs is needed.
    """
    weights = _weights(layer)
    return 2 * weights.numel() * (1 + weights.requires_grad + needs_inputs)


def _weights(layer: nn.Linear | SparseLinear) -> Tensor:
    """Return the weights that there are, of a sparse layer those in its places alone."""
    return layer.values if isinstance(layer, SparseLinear) else layer.weight


def blocks_forward(blocks: Iterable[nn.Module], tokens: int, width: int) -> int:
    """Operations of the forward of Transformer blocks on one sample.

    Linear layers, and the two products of attention.
    """
    return sum(tokens * forward(block) + 4 * tokens**2 * width for block in blocks)


def block_training(block: Any, tokens: int, width: int, needs_inputs: bool = True) -> int:
    """Operations of forward and backward of a Transformer block on one sample.

    Not `needs_inputs`: only frozen weights came before. Then a frozen block has no backward pass,
    and that of one with adapters ends in those of queries and values; keys need no gradient
    either. One that is trained begins with a norm, whose weights need all the others' gradients.
    """
    if not needs_inputs and not is_trained(block):
        return blocks_forward([block], tokens, width)
    norm = block.norm1 if hasattr(block, "norm1") else block.layernorm_before  # as in DINOv2
    if needs_inputs or is_trained(norm):
        return tokens * training(block) + 12 * tokens**2 * width
    linear = 0
    for name, layer in layers(block):
        is_end = name.startswith("attention.") and "o_proj" not in name
        linear += of_layer(layer, needs_inputs=not is_end or "lora_B" in name)
    return tokens * linear + 10 * tokens**2 * width
