"""One exchange over the cut, in plain torch.

head -> encode -> | payload | -> decode -> tail -> loss -> d loss / d values -> | -> head

The gradient is taken at the payload's values, so autograd covers both halves and the
downlink shrinks with the uplink.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_split.codecs import Codec, Received, Smashed
from fl_split.flat import Flat
from fl_split.payload import Payload
from fl_split.seeds import generator, seeded
from fl_split.vit import Head, Tail, has_dropout


@dataclass(frozen=True)
class Place:
    """Where in a run a step happens; all its randomness is derived from here."""

    seed: int
    round: int
    client: int
    step: int

    def path(self) -> tuple[int, int, int]:
        """Round, client, step."""
        return self.round, self.client, self.step

    def next(self) -> Place:
        """The client's next step of the same round."""
        return replace(self, step=self.step + 1)


def smash(
    head: Head, codec: Codec, pixels: Tensor, labels: Tensor, num_classes: int, place: Place
) -> Payload:
    """Client, forward: images (B, C, H, W) to a payload with a live graph.

    The same arguments and weights give the same payload, bit for bit, so the forward can be
    repeated later when the graph could not be kept.
    """
    draw = seeded(place.seed, "head", *place.path()) if has_dropout(head) else nullcontext()
    with draw:
        tokens, attention = head(pixels)
    smashed = Smashed(tokens, attention, labels, num_classes)
    return codec.encode(smashed, generator(place.seed, "codec", *place.path()))


def backpropagate(payload: Payload, gradient: Payload) -> None:
    """Client, backward: add the head's gradients for the cut gradient of its payload.

    Raises
    ------
    ValueError
        The gradient does not have the names and shapes of the payload's values.
    """
    expected = {name: tuple(value.shape) for name, value in payload.values.items()}
    got = {name: tuple(value.shape) for name, value in gradient.values.items()}
    if expected != got:
        raise ValueError(f"cut gradient must have the shapes {expected}, got {got}")
    names = list(payload.values)
    torch.autograd.backward(
        [payload.values[name] for name in names], [gradient.values[name] for name in names]
    )


def loss(logits: Tensor, received: Received) -> Tensor:
    """Cross-entropy of logits (K, C), averaged over rows with the codec's weights."""
    if received.weights is None:
        return functional.cross_entropy(logits, received.targets)
    rows = functional.cross_entropy(logits, received.targets, reduction="none")
    return (rows * received.weights).sum() / received.weights.sum()


@dataclass(frozen=True)
class Arrival:
    """A payload on the server: where its cut gradient is taken, and what the tail is fed."""

    leaves: dict[str, Tensor]
    received: Received


def arrive(tail: Tail, codec: Codec, payload: Payload) -> Arrival:
    """Decode a payload and check that it is something `tail` can be trained on.

    Raises
    ------
    ValueError
        Values that are not finite, tokens or targets of a wrong shape, or a label that is
        no class.
    """
    if not all(bool(value.isfinite().all()) for value in payload.values.values()):
        raise ValueError("values that are not finite")
    try:
        leaves = {name: value.detach().requires_grad_() for name, value in payload.values.items()}
        received = codec.decode(Payload(leaves, payload.side))
    except (KeyError, IndexError, RuntimeError) as error:
        raise ValueError(f"cannot be decoded: {error}") from None
    tokens, targets = received.tokens, received.targets
    classes, width = tail.classifier.weight.shape
    if tokens.dim() != 3 or not len(tokens) or tokens.shape[2] != width:
        raise ValueError(f"tokens must be (K, T, {width}), got {tuple(tokens.shape)}")
    if targets.shape not in {(len(tokens),), (len(tokens), classes)}:
        raise ValueError(f"targets do not fit {len(tokens)} rows: {tuple(targets.shape)}")
    if targets.dim() == 1 and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise ValueError(f"labels must be in 0..{classes - 1}")
    if not bool(targets.isfinite().all()):
        raise ValueError("labels that are not finite")
    return Arrival(leaves, received)


def cut_gradients(
    tail: Tail, arrivals: Sequence[Arrival], weights: Sequence[float], place: Place
) -> tuple[list[float], list[Payload]]:
    """Server: add the tail's gradient of sum_k weights[k] loss_k; return losses and cut gradients.

    All arrivals run through the tail as one batch, so they must have the same number of
    tokens. Each cut gradient is that of the client's own loss.
    """
    received = [arrival.received for arrival in arrivals]
    tokens = [part.tokens for part in received]
    draw = seeded(place.seed, "tail", *place.path()) if has_dropout(tail) else nullcontext()
    with draw:
        logits = tail(tokens[0] if len(tokens) == 1 else torch.cat(tokens))
    parts = logits.split([len(part) for part in tokens])
    losses = [loss(part, own) for part, own in zip(parts, received, strict=True)]
    torch.stack([w * value for w, value in zip(weights, losses, strict=True)]).sum().backward()
    gradients = []
    for arrival, weight in zip(arrivals, weights, strict=True):
        own = {name: _own(leaf, weight) for name, leaf in arrival.leaves.items()}
        gradients.append(Payload(own))
    return [float(value.detach()) for value in losses], gradients


def _own(leaf: Tensor, weight: float) -> Tensor:
    """Undo the client's weight in the joint loss: its head follows its own loss."""
    gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return gradient if weight == 1 else gradient / weight


def exchange(
    head: Head,
    tail: Tail,
    codec: Codec,
    pixels: Tensor,
    labels: Tensor,
    num_classes: int,
    place: Place,
) -> float:
    """One whole exchange in one process: add the gradients of head and tail, return the loss."""
    payload = smash(head, codec, pixels, labels, num_classes, place)
    losses, gradients = cut_gradients(tail, [arrive(tail, codec, payload)], [1.0], place)
    backpropagate(payload, gradients[0])
    return losses[0]


def train_step(
    head: Flat[Head],
    tail: Flat[Tail],
    optimizers: Sequence[torch.optim.Optimizer],
    codec: Codec,
    pixels: Tensor,
    labels: Tensor,
    num_classes: int,
    place: Place,
) -> float:
    """One exchange and one step of both optimisers; return the loss."""
    head.zero_grad()
    tail.zero_grad()
    value = exchange(head.module, tail.module, codec, pixels, labels, num_classes, place)
    for optimizer in optimizers:
        optimizer.step()
    return value


@torch.no_grad()
def predict(head: nn.Module, tail: nn.Module, pixels: Tensor) -> Tensor:
    """Logits (B, C) without compression, as in evaluation."""
    return tail(head(pixels)[0])
