"""Heads of several clients as one: stacked weights, batched products; on the CPU the same bits.

With few tokens per client most of a step is the cost of calling kernels. Running G clients
through the very code of the head, with layers that hold one set of weights per client, calls
each kernel once for all of them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fl_split.codecs import Codec, Mixed, Smashed
from fl_split.exchange.split import encode, pair
from fl_split.exchange.stacked_layers import Conv2d, LayerNorm, Linear, SparseLinear
from fl_split.flat import Flat
from fl_split.models import sparse_linear
from fl_split.models.cut import Head
from fl_split.payload import Payload
from fl_split.recipe.precision import FP32, Precision
from fl_split.seeds import StepId, generator

MEMBERS = 8
"""Most clients in a stack on a CPU: more gain little, and their activations leave the cache."""

TRIALS = 3
"""Times that loop and stack run against each other; the best of each counts."""


@dataclass(frozen=True, eq=False)
class StackedForward:
    """A forward of G clients with its graph.

    Attributes
    ----------
    tokens : Tensor
        (G * B, N, D), the heads' output.
    before : Tensor
        (G * B, N, D), the input of the last block, without graph.
    weights : list[Tensor]
        The parameters, each (G, ...), or with what fills up a stack (size, ...).
    members : int
        Number of clients G.
    is_fixed : bool
        Whether the stack is filled up: gradients may be asked for again, and of some clients.
    """

    tokens: Tensor
    before: Tensor
    weights: list[Tensor]
    members: int
    is_fixed: bool = False
    precision: Precision = FP32

    def differentiate(self, gradient: Tensor) -> Tensor:
        """Return the gradients (G, P) of the flat weights for that of the tokens.

        Once only, unless the stack is filled up.
        """
        parts = gradient.chunk(self.members)
        scales = [self.precision.scale([part]) for part in parts]  # as of a head alone
        is_scaled = any(scale != 1 for scale in scales)
        if is_scaled:
            gradient = torch.cat([part * s for part, s in zip(parts, scales, strict=True)])
        found = torch.autograd.grad(self.tokens, self.weights, gradient, retain_graph=self.is_fixed)
        whole = torch.cat([part[: self.members].flatten(1) for part in found], dim=1)
        if is_scaled:
            whole = whole / torch.tensor(scales, device=whole.device)[:, None]
        return whole


class StackedHead:
    """Copies of `head` with weights of their own: any number, or always as many as `size`.

    With a size a stack of fewer clients is filled up with copies of its first one. Kernels of a
    GPU are chosen by shapes: so no client's bits depend on who is there beside it.

    Raises
    ------
    ValueError
        `head` draws random numbers or holds layers that have no stacked counterpart.
    """

    def __init__(self, head: Head, size: int = 0, precision: Precision = FP32) -> None:
        self.size, self.precision = size, precision
        if not head.can_stack:
            raise ValueError("only ViT heads without dropout can be stacked")
        self._shapes = [parameter.shape for parameter in head.parameters()]
        names = [name for name, _ in head.named_parameters()]
        self._head: Any = copy.deepcopy(head)
        _swap(self._head)
        self._slots: list[tuple[nn.Module, str]] = []
        for name in names:
            path, _, attribute = name.rpartition(".")
            owner = self._head.get_submodule(path)
            owner._parameters.pop(attribute, None)
            self._slots.append((owner, attribute))
        if left := [name for name, _ in self._head.named_parameters()]:
            raise ValueError(f"{left[0]} cannot be stacked")

    def run(self, vectors: Sequence[Tensor], pixels: Tensor) -> StackedForward:
        """Forward of G clients with flat weights (P,) each on images (G * B, C, H, W)."""
        members, rows = len(vectors), len(pixels)
        if missing := max(0, self.size - members):
            first = pixels[: rows // members]
            pixels = torch.cat([pixels, first.repeat(missing, 1, 1, 1)])
            vectors = [*vectors, *[vectors[0]] * missing]
        with torch.no_grad():
            columns = torch.stack(list(vectors)).split([s.numel() for s in self._shapes], dim=1)
        weights = [
            column.reshape(len(vectors), *shape).requires_grad_()
            for column, shape in zip(columns, self._shapes, strict=True)
        ]
        for (owner, attribute), weight in zip(self._slots, weights, strict=True):
            if owner is self._head.embeddings:  # (G, 1, N, D), which the module adds to its rows
                places = weight.expand(-1, len(pixels) // len(vectors), -1, -1)
                setattr(owner, attribute, places.reshape(len(pixels), *weight.shape[2:]))
            else:
                setattr(owner, attribute, weight)
        with self.precision.forward(pixels):
            tokens = self._head.embeddings(pixels)
            for block in self._head.blocks[:-1]:
                tokens = block(tokens)
            sent = self._head.encoder(self._head.blocks[-1](tokens)).float()
        before = tokens.detach()
        if missing:
            sent, before = sent[:rows], before[:rows]
        return StackedForward(sent, before, weights, members, self.size > 0, self.precision)


@dataclass(frozen=True)
class StackSlot:
    """One client's place in a stack: its number, and where its codec's graph begins."""

    forward: StackedForward
    number: int
    tokens: Tensor


def smash_together(
    stacked: StackedHead,
    heads: Sequence[Flat[Head]],
    codec: Codec,
    pixels: Tensor,
    labels: Tensor,
    num_classes: int,
    steps: Sequence[StepId],
    mixed: Sequence[Mixed | None],
) -> list[tuple[Payload, StackSlot]]:
    """Do what :meth:`Split.smash` does, for G clients with as many images each.

    `pixels` (G * B, C, H, W) and `labels` (G * B,) go client by client.
    """
    forward = stacked.run([head.vector for head in heads], pixels)
    whole = forward.tokens.detach(), forward.before, labels
    parts = [part.chunk(forward.members) for part in whole]
    found = []
    for number, (tokens, before, targets) in enumerate(zip(*parts, strict=True)):
        slot = StackSlot(forward, number, tokens.requires_grad_())
        head = heads[number].module
        attention = partial(head.attention, before)
        known = slot.tokens, attention, targets, num_classes, head.num_read, mixed[number]
        smashed = Smashed(*known)
        found.append((encode(codec, smashed, steps[number]), slot))
    return found


def head_gradients(
    slots: Sequence[StackSlot], payloads: Sequence[Payload], gradients: Sequence[Payload]
) -> Tensor:
    """Do what :func:`~fl_split.exchange.split.head_gradient` does, for all clients of a stack.

    `slots` are all those of one forward, in order, or of a filled-up one some. Returns as many
    rows (G, P).

    Raises
    ------
    ValueError
        A gradient does not have the names and shapes of its payload's values.
    """
    forward, parts = slots[0].forward, dict[int, Tensor]()
    for slot, payload, gradient in zip(slots, payloads, gradients, strict=True):
        values, weights = pair(payload, gradient)
        found = torch.autograd.grad(values, [slot.tokens], weights, materialize_grads=True)
        parts[slot.number] = found[0]
    if len(parts) == forward.members:
        return forward.differentiate(torch.cat(list(parts.values())))
    nothing = torch.zeros_like(next(iter(parts.values())))
    whole = [parts.get(number, nothing) for number in range(forward.members)]
    of_all = forward.differentiate(torch.cat(whole))
    return torch.stack([of_all[number] for number in parts])


def _swap(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Linear())
        elif isinstance(child, sparse_linear.SparseLinear):
            setattr(module, name, SparseLinear(child))
        elif isinstance(child, nn.LayerNorm):
            setattr(module, name, LayerNorm(child.eps))
        elif isinstance(child, nn.Conv2d):
            setattr(module, name, Conv2d(child.stride))
        else:
            _swap(child)


Contest = tuple[Callable[[], tuple[Tensor, Tensor]], Callable[[], tuple[Tensor, Tensor]]]
"""Heads one by one, and as a stack: each gives tokens and gradients."""


def _contest(stacked: StackedHead, head: Head, shape: Sequence[int], members: int) -> Contest:
    """Let copies of `head` run on batches of `shape` (B, C, H, W), one by one and as a stack."""
    draw, precision = generator(0, "stacked"), stacked.precision
    heads = [Flat(copy.deepcopy(head)) for _ in range(members)]
    for flat in heads:
        noise = torch.randn(flat.vector.shape, generator=draw, device="cpu")
        flat.load(flat.vector.detach() + 0.01 * noise)
    pixels = torch.randn(members * shape[0], *shape[1:], generator=draw, device="cpu")
    with torch.no_grad():
        sent = head(pixels)[0]
    weights = torch.randn(sent.shape, generator=draw, device="cpu")

    def loop() -> tuple[Tensor, Tensor]:
        outputs, gradients = [], []
        for flat, images, weight in zip(
            heads, pixels.chunk(members), weights.chunk(members), strict=True
        ):
            with precision.forward(images):
                outputs.append(flat.module(images)[0].float())
            gradients.append(precision.differentiate(flat, outputs[-1:], [weight])[0])
        return torch.cat(outputs), torch.stack(gradients)

    def stack() -> tuple[Tensor, Tensor]:
        found = stacked.run([flat.vector for flat in heads], pixels)
        return found.tokens, found.differentiate(weights)

    return loop, stack


def is_faster(
    stacked: StackedHead,
    head: Head,
    shape: Sequence[int],
    clock: Callable[[], float] = time.thread_time,
) -> bool:
    """Try a stack of copies of `head` on batches of `shape` (B, C, H, W) against one by one.

    True if the stack takes less CPU time on this machine, by `clock`, and, which kernels do
    not promise, gives the same bits.
    """
    loop, stack = _contest(stacked, head, shape, MEMBERS)
    seconds: dict[Callable[[], Any], list[float]] = {loop: [], stack: []}
    for _ in range(TRIALS):
        results = []
        for function, times in seconds.items():
            began = clock()
            results.append(function())
            times.append(clock() - began)
        if not all(map(torch.equal, *results)):
            return False
    return min(seconds[stack]) < min(seconds[loop])


def gives_same_bits(
    stacked: StackedHead, head: Head, shape: Sequence[int], members: int = MEMBERS
) -> bool:
    """Tell whether a stack of so many gives the bits of one by one on batches of `shape`."""
    loop, stack = _contest(stacked, head, shape, members)
    return all(map(torch.equal, loop(), stack()))
