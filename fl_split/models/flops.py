"""Floating-point operations of head and tail, by closed form; a multiply-add counts two.

Per block and sample with N tokens of width D: 2 N times the weights of its linear layers,
and 4 N^2 D for the two products of attention. Per convolution: twice its weights for every
position of its output. Backward costs that again for the inputs and again for the weights;
only pixels and frozen weights need none. Norms, activations, pooling and softmax are left
out, as by torch's counter; codecs' own arithmetic is measured in time instead.
"""

from __future__ import annotations

from torch import nn

from fl_split.models.cut import Head, Tail
from fl_split.models.stages import ConvHead, ConvMiddle
from fl_split.models.vit import ViTHead, ViTMiddle, ViTTail


def head_step(head: Head, samples: int) -> int:
    """Operations of the head's forward and backward on so many images, without its end."""
    tokens, width = head.smashed_shape
    total = tokens * _linear(head.encoder)
    if isinstance(head, ViTHead):
        patches = head.embeddings.patch_embeddings
        kernel = patches.projection.weight
        is_trained = kernel.requires_grad
        total += 2 * patches.num_patches * kernel.numel() * (1 + is_trained)
        first, *others = head.blocks
        total += _block(first, tokens, width, is_trained)
        total += sum(_block(block, tokens, width) for block in others)
    else:
        assert isinstance(head, ConvHead)
        total += 3 * sum(head.layer_flops) - head.layer_flops[0]
    return samples * total


def tail_step(tail: Tail, rows: int, tokens: int) -> int:
    """Operations of the tail's forward and backward on `rows` sequences of `tokens` tokens."""
    total = tokens * _linear(tail.decoder)
    if isinstance(tail, ViTMiddle):
        total += sum(_block(block, tokens, tail.hidden_size) for block in tail.blocks)
        total += _linear(tail.classifiers) if isinstance(tail, ViTTail) else 0
    else:
        assert isinstance(tail, ConvMiddle)
        total += 3 * sum(tail.layer_flops)
    return rows * total


def whole_step(head: Head, tail: Tail, samples: int) -> int:
    """Operations of head, tail and end together on so many images, uncompressed."""
    tokens = head.smashed_shape[0]
    total = head_step(head, samples) + tail_step(tail, samples, tokens)
    return total + (tail_step(head.end, samples, tokens) if head.end else 0)


def _block(block: nn.Module, tokens: int, width: int, needs_inputs: bool = True) -> int:
    """Operations of a step on one sample.

    Not `needs_inputs`: only frozen weights came before, so that a backward pass ends in the
    adapters of queries and values, and keys need no gradient either.
    """
    if needs_inputs:
        return tokens * _linear(block) + 12 * tokens**2 * width
    linear = 0
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Linear):
            is_end = name.startswith("attention.") and "o_proj" not in name
            linear += _step(layer, needs_inputs=not is_end or "lora_B" in name)
    return tokens * linear + 10 * tokens**2 * width


def _linear(module: nn.Module) -> int:
    """Operations of a step of all linear layers on one token."""
    return sum(_step(layer) for layer in module.modules() if isinstance(layer, nn.Linear))


def _step(layer: nn.Linear, needs_inputs: bool = True) -> int:
    """Forward, gradient of the weights if they are trained, gradient of the inputs if needed."""
    return 2 * layer.weight.numel() * (1 + layer.weight.requires_grad + needs_inputs)
