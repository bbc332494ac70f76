"""One exchange over the cut, in plain torch.

head -> encode -> | payload | -> decode -> tail -> loss -> d loss / d values -> | -> head

The gradient is taken at the payload's values, so autograd covers both halves and the
downlink shrinks with the uplink.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fl_split.codecs import Codec, Received, Smashed
from fl_split.flat import Flat
from fl_split.models.cut import Head, Tail
from fl_split.payload import Payload
from fl_split.seeds import generator, seeded


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
    with randomness(head, "head", place):
        tokens, attention = head(pixels)
    return compress(codec, Smashed(tokens, attention, labels, num_classes, head.num_read), place)


def compress(codec: Codec, smashed: Smashed, place: Place) -> Payload:
    """Encode with the randomness of `place`."""
    if smashed.tokens.requires_grad:  # sums in the head must not depend on strides
        smashed.tokens.register_hook(torch.Tensor.contiguous)
    return codec.encode(smashed, generator(place.seed, "codec", *place.path()))


def pack(codec: Codec, payload: Payload, place: Place, purpose: str = "pack") -> Payload:
    """Return what is sent of `payload`, without its graph; the randomness is that of `place`.

    Raises
    ------
    ValueError
        Values that are not finite: some grids would hide them.
    """
    check_finite(payload)
    with torch.no_grad():
        return codec.pack(payload, generator(place.seed, purpose, *place.path()))


def head_gradient(head: Flat[Head], payload: Payload, gradient: Payload) -> Tensor:
    """Client, backward: the head's gradient for the cut gradient of its payload.

    Raises
    ------
    ValueError
        The gradient does not have the names and shapes of the payload's values.
    """
    return head.differentiate(*pair(payload, gradient))[0]


def pair(payload: Payload, gradient: Payload) -> tuple[list[Tensor], list[Tensor]]:
    """Values of `payload` and their gradients, in the same order.

    Raises
    ------
    ValueError
        The gradient does not have the names and shapes of the payload's values.
    """
    expected = {name: tuple(value.shape) for name, value in payload.values.items()}
    got = {name: tuple(value.shape) for name, value in gradient.values.items()}
    if expected != got:
        raise ValueError(f"cut gradient must have the shapes {expected}, got {got}")
    return list(payload.values.values()), [gradient.values[name] for name in payload.values]


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

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows together."""
        rows, tokens, _ = self.received.tokens.shape
        return rows * tokens


def arrive(tail: Tail, codec: Codec, payload: Payload) -> Arrival:
    """Unpack and decode what came, and check that it is something `tail` can be trained on.

    Raises
    ------
    ValueError
        Values that are not finite, tokens or targets of a wrong shape, or a label that is
        no class.
    """
    try:
        payload = codec.unpack(payload)
        check_finite(payload)
        leaves = {name: value.detach().requires_grad_() for name, value in payload.values.items()}
        received = codec.decode(Payload(leaves, payload.side))
    except (KeyError, IndexError, OverflowError, RuntimeError, TypeError) as error:
        raise ValueError(f"cannot be decoded: {error}") from None
    tokens, targets = received.tokens, received.targets
    classes, width, count = tail.num_classes, tail.width, tail.num_tokens or "T"
    if tokens.dim() != 3 or not len(tokens) or tokens.shape[2] != width:
        raise ValueError(f"tokens must be (K, {count}, {width}), got {tuple(tokens.shape)}")
    if tail.num_tokens not in {None, tokens.shape[1]}:
        raise ValueError(f"tokens must be (K, {count}, {width}), got {tuple(tokens.shape)}")
    if targets.shape not in {(len(tokens),), (len(tokens), classes)}:
        raise ValueError(f"targets do not fit {len(tokens)} rows: {tuple(targets.shape)}")
    if targets.dim() == 1 and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise ValueError(f"labels must be in 0..{classes - 1}")
    if not bool(targets.isfinite().all()):
        raise ValueError("labels that are not finite")
    return Arrival(leaves, received)


def check_finite(payload: Payload) -> None:
    """Raise ValueError if a value is infinite or not a number."""
    for value in payload.values.values():
        if not all(map(torch.isfinite, value.detach().aminmax())):
            raise ValueError("values that are not finite")


def cut_gradients(
    tail: Flat[Tail], arrivals: Sequence[Arrival], weights: Sequence[float], place: Place
) -> tuple[list[float], list[Payload], Tensor]:
    """Server: losses, cut gradients, and the tail's gradient of sum_k weights[k] loss_k.

    All arrivals run through the tail as one batch, so they must have the same number of
    tokens, and with batch norm each must come alone. Each cut gradient is that of the
    client's own loss.
    """
    assert len(arrivals) == 1 or not tail.module.has_batch_norm
    tokens = [arrival.received.tokens for arrival in arrivals]
    with randomness(tail.module, "tail", place):
        logits = tail.module(tokens[0] if len(tokens) == 1 else torch.cat(tokens))
    total, losses = _joint_loss(logits, [arrival.received for arrival in arrivals], weights)
    leaves = [leaf for arrival in arrivals for leaf in arrival.leaves.values()]
    gradient, cuts = tail.differentiate([total], inputs=leaves)
    if tail.statistics is not None:  # which know nothing of the weight in the joint loss
        gradient[tail.statistics] *= weights[0]
    following = iter(cuts)
    payloads = [
        # Undo the weight in the joint loss: a head follows its own client's loss.
        Payload({name: next(following) / weight for name in arrival.leaves})
        for arrival, weight in zip(arrivals, weights, strict=True)
    ]
    return losses, payloads, gradient


def _joint_loss(
    logits: Tensor, received: Sequence[Received], weights: Sequence[float]
) -> tuple[Tensor, list[float]]:
    """Return sum_k weights[k] loss_k and every loss_k; the rows of all k in one operation."""
    if len(received) == 1:
        value = loss(logits, received[0])
        return weights[0] * value, [float(value.detach())]
    rows = functional.cross_entropy(
        logits, torch.cat([part.targets for part in received]), reduction="none"
    )
    shares = torch.cat([_shares(part) for part in received])
    counts = torch.tensor([len(part.tokens) for part in received])
    scale = torch.tensor(weights).repeat_interleave(counts)
    starts = (counts.cumsum(0) - counts).numpy()
    losses = np.add.reduceat((rows.detach() * shares).numpy(), starts)
    return (rows * (shares * scale)).sum(), losses.tolist()


def _shares(received: Received) -> Tensor:
    """Return how much each row counts in the client's loss; the shares sum to 1."""
    count, weights = len(received.tokens), received.weights
    return torch.full((count,), 1 / count) if weights is None else weights / weights.sum()


def randomness(module: Head | Tail, purpose: str, place: Place) -> AbstractContextManager[None]:
    """Seed what `module` draws in a training forward, if it draws anything."""
    return seeded(place.seed, purpose, *place.path()) if module.has_dropout else nullcontext()
