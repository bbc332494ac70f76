"""Floating-point operations of head and tail, by closed form; a multiply-add counts two.

Per block and sample with N tokens of width D: 2 N times the weights of its linear layers,
and 4 N^2 D for the two products of attention. Per convolution: twice its weights for every
position of its output. Backward costs that again for the inputs and again for the weights;
only pixels need no gradient. Norms, activations, pooling and softmax are left out, as by
torch's counter; codecs' own arithmetic is measured in time instead.
"""

from __future__ import annotations

from torch import nn

from fl_split.conv import ConvHead, ConvTail
from fl_split.cut import Head, Tail
from fl_split.vit import ViTHead, ViTTail


def head_step(head: Head, samples: int) -> int:
    """Operations of the head's forward and backward on so many images."""
    tokens, width = head.smashed_shape
    rest = tokens * _linear(head.encoder)
    if isinstance(head, ViTHead):
        first = 2 * (tokens - 1) * head.embeddings.patch_embeddings.projection.weight.numel()
        rest += sum(_block(block, tokens, width) for block in head.blocks)
    else:
        assert isinstance(head, ConvHead)
        first, *others = head.layer_flops
        rest += sum(others)
    return samples * (2 * first + 3 * rest)


def tail_step(tail: Tail, rows: int, tokens: int) -> int:
    """Operations of the tail's forward and backward on `rows` sequences of `tokens` tokens."""
    forward = tokens * _linear(tail.decoder)
    if isinstance(tail, ViTTail):
        width = tail.classifier.weight.shape[1]
        forward += 2 * tail.classifier.weight.numel()
        forward += sum(_block(block, tokens, width) for block in tail.blocks)
    else:
        assert isinstance(tail, ConvTail)
        forward += sum(tail.layer_flops)
    return 3 * rows * forward


def whole_step(head: Head, tail: Tail, samples: int) -> int:
    """Operations of head and tail together on so many images, uncompressed."""
    return head_step(head, samples) + tail_step(tail, samples, head.smashed_shape[0])


def _block(block: nn.Module, tokens: int, width: int) -> int:
    return tokens * _linear(block) + 4 * tokens**2 * width


def _linear(module: nn.Module) -> int:
    """Forward operations of all linear layers on one token."""
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
    return sum(2 * layer.weight.numel() for layer in layers)
