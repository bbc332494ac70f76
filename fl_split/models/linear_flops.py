"""Closed forms of floating-point operations that models share; a multiply-add counts two.

A linear layer costs twice its weights for every token, forward. Backward costs that again for
the gradient of the inputs and again for the gradient of the weights; only pixels and frozen
weights need none. Norms, activations, pooling and softmax are left out, as torch's counter
leaves them out. The arithmetic of codecs is measured in time instead.
"""

from __future__ import annotations

from torch import nn


def forward(module: nn.Module) -> int:
    """Operations of the forward of all linear layers in `module`, on one token."""
    layers = (part for part in module.modules() if isinstance(part, nn.Linear))
    return sum(2 * layer.weight.numel() for layer in layers)


def training(module: nn.Module) -> int:
    """Operations of forward and backward of all linear layers in `module`, on one token."""
    return sum(of_layer(part) for part in module.modules() if isinstance(part, nn.Linear))


def of_layer(layer: nn.Linear, needs_inputs: bool = True) -> int:
    """Operations of forward and backward of `layer` on one token.

    `needs_inputs` says whether the gradient of the layer's inputs is needed.
    """
    return 2 * layer.weight.numel() * (1 + layer.weight.requires_grad + needs_inputs)
