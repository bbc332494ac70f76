"""What autograd keeps of the blocks of a Transformer, for more tokens than one would try."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fl_split.accelerators import device_of
from fl_split.activations import activation_bytes, saved
from fl_split.models.sparse_linear import dense_bytes
from fl_split.seeds import seeded

STEP = 64
"""Trials have one, two and three times so many tokens; kernels that pad, pad to less."""


def kept_bytes(blocks: Sequence[nn.Module] | nn.ModuleList, tokens: int, width: int) -> int:
    """Estimate what autograd keeps of one sequence of `tokens` tokens in equal blocks.

    Of one block it is measured on few tokens, and extrapolated by the parabola through three
    of them: linear layers keep a multiple of the tokens; attention, where its rows are held as
    with attention dropout, a multiple of their square. What sparse layers keep whatever the
    number of sequences, is left out: :func:`~fl_split.models.sparse_linear.dense_bytes`.
    """
    if not len(blocks):
        return 0
    one, two, three = (_measured(blocks[0], STEP * times, width) for times in (1, 2, 3))
    bend, times = three - 2 * two + one, tokens / STEP
    rest = one + (times - 1) * (two - one)
    return len(blocks) * max(0, round(rest + (times - 1) * (times - 2) * bend / 2))


def _measured(block: nn.Module, tokens: int, width: int) -> int:
    with saved() as sizes, seeded(0, "trial"), torch.enable_grad():
        inputs = torch.randn(1, tokens, width, device="cpu").to(device_of(block))
        output = block(inputs.requires_grad_())  # drawn: experts have no room for equal tokens
    found = activation_bytes(sizes, [*block.parameters(), *block.buffers()])
    del output  # whose graph was kept so long
    return found - dense_bytes(block)
