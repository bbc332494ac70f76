"""Floating-point operations of head and tail, by closed form; a multiply-add counts two.

Per block and sample with N tokens of width D: 2 N times the weights of its linear layers,
and 4 N^2 D for the two products of attention. Backward costs that again for the inputs and
again for the weights; only pixels need no gradient. Norms, activations and softmax are
left out, as by torch's counter; codecs' own arithmetic is measured in time instead.
"""

from __future__ import annotations

from torch import nn

from fl_split.vit import Head, Tail


def head_step(head: Head, samples: int) -> int:
    """Operations of the head's forward and backward on so many images."""
    tokens, width = head.smashed_shape
    patches = 2 * (tokens - 1) * head.embeddings.patch_embeddings.projection.weight.numel()
    rest = tokens * _linear(head.encoder)
    rest += sum(_block(block, tokens, width) for block in head.blocks)
    return samples * (2 * patches + 3 * rest)


def tail_step(tail: Tail, rows: int, tokens: int) -> int:
    """Operations of the tail's forward and backward on `rows` sequences of `tokens` tokens."""
    width = tail.classifier.weight.shape[1]
    forward = tokens * _linear(tail.decoder) + 2 * tail.classifier.weight.numel()
    forward += sum(_block(block, tokens, width) for block in tail.blocks)
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
