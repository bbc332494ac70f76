"""Laws that every selection of tokens keeps."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fl_split.checks.laws import check_repr, hold, must
from fl_split.models.beside import Trace
from fl_split.models.cut import Head, Tail
from fl_split.models.vit import ViT, split
from fl_split.seeds import global_state, seeded
from fl_split.tokens import insert
from fl_split.tokens.selection import Selection

SMALL = ViT(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, patch_size=4)
CUT, SIZE, PATCHES = 3, 16, 16
KEPT = 1, 5, 8, 11, 16
"""How many of the patches go on."""


def check_tokens(selection: Selection) -> None:
    """Hold a selection of tokens to its laws; AssertionError with the one it breaks.

    In a small ViT of 16 patches that is cut behind its third block; where all tokens go on, the
    first law alone:

    - its repr is its spec, and the same seed builds the same weights;
    - of each image CLS and the patches that were asked for go on, and the trace says which; by
      threshold one or more of them;
    - all that is random comes from torch's generator, and evaluation draws nothing;
    - what does not draw gives in training what it gives in evaluation, bit for bit;
    - a forward changes no weight and no buffer, and gradients reach all weights of the selector;
    - operations, forward and with backward, are those that torch counts.
    """
    check_repr(selection)
    head, tail = must("a selection must fit a head of three blocks", lambda: _halves(selection))
    if head.selector is None:
        return
    again, _ = _halves(selection)
    for (name, weight), other in zip(head.named_parameters(), again.parameters(), strict=True):
        hold(torch.equal(weight, other), f"the same seed must build the same {name}")
    before = {name: value.clone() for name, value in head.state_dict().items()}
    _check_counts(head)
    for count in KEPT:
        _check_draws(head.keeping(count))
        _check_flops(head.keeping(count), tail, count)
    for name, value in head.state_dict().items():
        hold(torch.equal(before[name], value), f"a forward must not change {name}")
    for name, weight in head.selector.named_parameters():
        is_reached = weight.grad is not None and bool(weight.grad.abs().sum() > 0)
        hold(is_reached, f"a gradient must reach {name} of the selector")


def _halves(selection: Selection) -> tuple[Head, Tail]:
    model = SMALL.build(image_size=SIZE, channels=3, num_classes=5, seed=0)
    model.set_attn_implementation("eager")  # fused attention counts as nothing on a CPU
    head, tail = split(model.train(), CUT)
    insert(head, selection, 0)
    return head, tail


def _images(count: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, SIZE, SIZE, generator=draw, device="cpu")


def _sent(head: Head, seed: int) -> tuple[Tensor, Trace, bool]:
    """Return tokens of a forward from a seed, its trace, and whether it has drawn."""
    with seeded(seed, "trial"):
        trace, before = Trace(), global_state()
        tokens, _ = head(_images(), trace)
        return tokens, trace, global_state() != before


def _check_counts(head: Head) -> None:
    for count in KEPT:
        tokens, trace, _ = _sent(head.keeping(count), 0)
        law = f"of {PATCHES} patches {count} must go on, with CLS"
        hold(tuple(tokens.shape) == (6, 1 + count, 16), f"{law}, got {tuple(tokens.shape)}")
        marks = trace.went_on
        is_told = marks is not None and marks.sum(dim=1).tolist() == [count] * 6
        hold(is_told, f"{law}, and the trace must say which")
    evaluated = copy.copy(head).eval()
    _, trace, _ = _sent(evaluated, 0)
    kept = [trace.kept] if isinstance(trace.kept, int) else trace.kept.tolist()
    hold(min(kept) >= 1 and max(kept) <= PATCHES, f"1 to {PATCHES} patches must go on, got {kept}")
    head.train()


def _check_draws(head: Head) -> None:
    first, second, other = (_sent(head.train(), seed) for seed in (0, 0, 1))
    law = "all that is random must come from torch's generator"
    hold(torch.equal(first[0], second[0]), f"{law}: the same seed must give the same tokens")
    tested = _sent(head.eval(), 0), _sent(head, 1)
    hold(not tested[0][2], "evaluation must draw nothing")
    hold(torch.equal(tested[0][0], tested[1][0]), f"{law}, and evaluation must draw nothing")
    if not first[2]:
        hold(torch.equal(first[0], other[0]), law)
        law = "what does not draw must give in training what it gives in evaluation"
        hold(torch.equal(first[0], tested[0][0]), law)
    head.train()


def _check_flops(head: Head, tail: Tail, count: int) -> None:
    law = f"with {count} patches operations must be those that torch counts"
    with FlopCounterMode(display=False) as counter:
        tokens = head(_images(5))[0]
        forward = counter.get_total_flops()
        tail(tokens).square().sum().backward()
    total = counter.get_total_flops() - tail.flops(5, 1 + count)
    hold(head.forward_flops(5) == forward, f"{law}: {forward}, got {head.forward_flops(5)}")
    hold(head.flops(5) == total, f"{law}: {total} with backward, got {head.flops(5)}")
