"""Both sides of the cut in one process: whole exchanges, and the joined model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fl_split.codecs import Codec
from fl_split.exchange.split import Place, arrive, cut_gradients, head_gradient, pack, smash
from fl_split.exchange.ushape import add_end, there_and_back
from fl_split.flat import Flat, descend
from fl_split.models.cut import Head, Tail


@dataclass(frozen=True)
class Proximal:
    """The gradient of mu / 2 ||w - w_0||^2, which FedProx adds (Li et al., MLSys 2020)."""

    mu: float
    head: Tensor
    tail: Tensor

    @classmethod
    def at(cls, mu: float, head: Flat[Head], tail: Flat[Tail]) -> Proximal:
        """Pull towards the present weights."""
        return cls(mu, head.vector.detach().clone(), tail.vector.detach().clone())

    def add(self, gradient: Tensor, flat: Flat[Any], anchor: Tensor) -> Tensor:
        """Return `gradient` with the pull on weights, not on running statistics, added."""
        if not self.mu:
            return gradient
        pull = self.mu * (flat.vector.detach() - anchor)
        if flat.statistics is not None:
            pull[flat.statistics] = 0
        return gradient + pull


def train_step(
    head: Flat[Head],
    tail: Flat[Tail],
    optimizers: Sequence[torch.optim.Optimizer],
    codec: Codec,
    pixels: Tensor,
    labels: Tensor,
    num_classes: int,
    place: Place,
    proximal: Proximal | None = None,
) -> float:
    """One whole exchange in one process and a step of both optimisers; return the loss."""
    payload = smash(head.module, codec, pixels, labels, num_classes, place)
    arrival = arrive(tail.module, codec, pack(codec, payload, place))
    if head.module.end is None:
        (loss,), (cut,), of_tail = cut_gradients(tail, [arrival], [1.0], place)
        of_head = head_gradient(head, payload, cut)
    else:
        loss, cut, of_tail, of_end = there_and_back(head, tail, arrival, place)
        of_head = add_end(head, head_gradient(head, payload, cut), of_end)
    if proximal:
        of_head = proximal.add(of_head, head, proximal.head)
        of_tail = proximal.add(of_tail, tail, proximal.tail)
    descend(optimizers[0], head, of_head)
    descend(optimizers[1], tail, of_tail)
    return loss


def joined(head: Head, tail: Tail, pixels: Tensor) -> Tensor:
    """Logits (B, C) without compression."""
    tokens = tail(head(pixels)[0])
    return tokens if head.end is None else head.end(tokens)


@torch.no_grad()
def predict(head: Head, tail: Tail, pixels: Tensor) -> Tensor:
    """Logits (B, C) without compression or graph, as in evaluation."""
    return joined(head, tail, pixels)
