"""Laws that all exits keep."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fl_split.checks.laws import check_repr, hold, must
from fl_split.exits import Exiting, Exits, exits_of, insert_exits
from fl_split.models.beside import Trace
from fl_split.models.cut import Head, Tail
from fl_split.models.vit import ViT
from fl_split.seeds import global_state, seeded

SMALL = ViT(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, patch_size=4)
CUT, SIZE, CLASSES, ROWS = 3, 8, 4, 5


def check_exits(spec: Exiting) -> None:
    """Hold exits to their laws; AssertionError with the one that they break.

    In a small ViT of four blocks that is cut behind its third one. There may be exits in the head,
    behind the cut, in both or nowhere:

    - the repr is a spec, and the same seed builds the same weights;
    - building changes no weight of the model;
    - each exit answers with logits (B, C), draws nothing, and answers each image by itself;
    - what an exit says does not depend on blocks behind it, so that an image may leave there;
    - the loss is `weight` times the sum of the losses of all exits, and its gradient reaches all
      their weights; with `detach` it reaches nothing else;
    - exits with all weights from a vector have these;
    - operations, forward and with backward, are those that torch counts.
    """
    check_repr(spec)
    bare, (head, tail), again = _built(None), _built(spec), _built(spec)
    for whole, plain in zip((head, tail), bare, strict=True):
        own = dict(whole.named_parameters())
        for name, weight in plain.named_parameters():
            hold(torch.equal(own[name], weight), f"building exits must not change {name}")
    pairs: list[tuple[Head | Tail, Head | Tail]] = [(head, again[0]), (tail, again[1])]
    for half, other in pairs:
        exits, same = exits_of(half), exits_of(other)
        hold((exits is None) == (same is None), "the same seed must build the same exits")
        if exits is None or same is None:
            continue
        for (name, weight), one in zip(exits.named_parameters(), same.parameters(), strict=True):
            hold(torch.equal(weight, one), f"the same seed must build the same {name}")
        _check_answers(half, exits)
        _check_loss(half, exits)
        _check_weights(half, exits)
        _check_flops(half, exits)


def _built(spec: Exiting | None) -> tuple[Head, Tail]:
    model = SMALL.build(image_size=SIZE, channels=1, num_classes=CLASSES, seed=0)
    head, tail = SMALL.split(model.train(), CUT)
    if spec is not None:
        law = "exits must fit a ViT of four blocks, cut behind the third"
        must(law, partial(insert_exits, head, tail, spec, CLASSES, 0))
    return head, tail


def _inputs(half: Head | Tail) -> Tensor:
    shape = half.image_shape if isinstance(half, Head) else (5, 16)
    draw = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, *shape, generator=draw, device="cpu")


def _traced(half: nn.Module, inputs: Tensor) -> Trace:
    trace = Trace()
    half(inputs, trace)
    return trace


def _check_answers(half: Head | Tail, exits: Exits) -> None:
    inputs, count = _inputs(half), len(exits.after)
    trace = _traced(half, inputs)
    with seeded(0, "trial"):
        before = global_state()
        found = exits.logits(trace)
        hold(global_state() == before, "exits must draw nothing")
    shapes = [tuple(one.shape) for one in found]
    law = f"each of {count} exits must answer with logits of shape {(ROWS, CLASSES)}, got {shapes}"
    hold(shapes == [(ROWS, CLASSES)] * count, law)
    for row in range(ROWS):
        alone = exits.logits(replace(trace, hidden=[one[row : row + 1] for one in trace.hidden]))
        for one, whole in zip(alone, found, strict=True):
            is_close = torch.allclose(one[0], whole[row], rtol=1e-4, atol=1e-5)
            hold(is_close, "an exit must answer each image by itself")
    for number, place in enumerate(exits.after):
        seen = place - exits.first
        hidden = [*trace.hidden[:seen], *(one + 1 for one in trace.hidden[seen:])]
        first = exits.logits(replace(trace, hidden=hidden))[number]
        law = f"the exit behind block {place} must not depend on blocks behind it"
        hold(torch.equal(first, found[number]), law)


def _check_loss(half: Head | Tail, exits: Exits) -> None:
    labels, trace = torch.arange(ROWS, device="cpu") % CLASSES, _traced(half, _inputs(half))

    def of_logits(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels)

    found = exits.loss(trace, of_logits)
    expected = exits.weight * sum(map(of_logits, exits.logits(trace)))
    law = "the loss must be weight times the sum of the losses of all exits"
    hold(torch.allclose(found, torch.as_tensor(expected, device="cpu")), law)
    own = dict(exits.named_parameters())
    trunk = {k: p for k, p in half.named_parameters() if not k.startswith("beside.")}
    summed: Any = sum(map(of_logits, exits.logits(trace)))  # a weight may be 0
    gradients = torch.autograd.grad(summed, [*own.values(), *trunk.values()], allow_unused=True)
    for name, gradient in zip(own, gradients, strict=False):
        is_reached = gradient is not None and bool(gradient.abs().sum() > 0)
        hold(is_reached, f"a gradient must reach {name} of the exits")
    reached = [g is not None and bool(g.abs().sum() > 0) for g in gradients[len(own) :]]
    law = "with detach no gradient of an exit must reach the trunk, and else some"
    hold(any(reached) != exits.detach, law)


def _check_weights(half: Head | Tail, exits: Exits) -> None:
    size = sum(one.numel() for one in exits.parameters())
    draw = torch.Generator().manual_seed(2)
    vector = torch.randn(size, generator=draw, device="cpu")
    before = nn.utils.parameters_to_vector(exits.parameters()).clone()
    found = exits.with_weights(vector)
    own = nn.utils.parameters_to_vector(found.parameters())
    hold(torch.equal(own, vector), "exits with weights from a vector must have these")
    after = nn.utils.parameters_to_vector(exits.parameters())
    hold(torch.equal(before, after), "exits with other weights must be a copy")


def _check_flops(half: Head | Tail, exits: Exits) -> None:
    trace = _traced(half, _inputs(half))
    leaves = [one.detach().requires_grad_() for one in trace.hidden]
    with FlopCounterMode(display=False) as counter:
        found = exits.logits(replace(trace, hidden=leaves))
        forward = counter.get_total_flops()
        torch.stack(found).sum().backward()
    both, law = counter.get_total_flops(), "operations of exits must be those that torch counts"
    told = exits.forward_flops(ROWS), exits.flops(ROWS)
    hold(told[0] == forward, f"{law}: {forward}, got {told[0]}")
    hold(told[1] == both, f"{law}: {both} with backward, got {told[1]}")
    of_all = ROWS * exits.forward_flops_of(len(exits.after))
    hold(of_all == forward, f"{law}: {forward} of all exits, got {of_all}")
    exits.zero_grad()
