"""All ways that an image can take: out at an exit, or over the cut from one of several places.

Every way of every image is computed once; policies then only choose among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_split.codecs import Smashed
from fl_split.exchange.account import Account
from fl_split.exchange.link import Arrival, Link
from fl_split.exchange.split import batches, encode
from fl_split.exits.exits import hidden_shapes
from fl_split.models import linear_flops as flops
from fl_split.models.beside import Trace
from fl_split.models.cut import Head, Tail
from fl_split.models.vit import ViTHead
from fl_split.payload import Payload
from fl_split.seeds import StepId
from simulations.data.samples import Samples
from simulations.inference.trained import Trained

ROWS = 128
"""Images that run through a head at once."""

Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class Ways:
    """What N images cost and give on each way; P places, in the order of the device's blocks.

    Attributes
    ----------
    labels : array
        (N,) classes.
    names : sequence of str
        Of places: `exit1` is behind the device's first block, `cut` behind its last one if that
        has no exit.
    has_exit, can_send : array
        (P,) whether an image can leave there, and whether it can be sent from there.
    local, served : array
        (P, N, C) probabilities of exits, and of the server for what is sent from there; not
        numbers where there is no such way, or where the channel has lost the payload.
    sent_bytes : array
        (P, N) of the payload, on the way.
    device_flops, server_flops : array
        (P,) operations up to a place, and behind it, on one image.
    answer_bytes : int
        Of the class that the server sends back.
    """

    labels: NDArray[np.int64]
    names: Sequence[str]
    has_exit: NDArray[np.bool_]
    can_send: NDArray[np.bool_]
    local: Probabilities
    served: Probabilities
    sent_bytes: NDArray[np.int64]
    device_flops: NDArray[np.int64]
    server_flops: NDArray[np.int64]
    answer_bytes: int


@torch.no_grad()
def ways_of(trained: Trained, samples: Samples, rows: NDArray[np.int64], link: Link) -> Ways:
    """Compute all ways of the images `rows` of `samples`, each sent by itself over `link`."""
    exits, head = trained.exits, trained.head
    blocks = len(hidden_shapes(head))
    after = list(exits.after) if exits else []
    places = sorted({*after, blocks})
    halves = [_halves(trained, place, blocks) for place in places]
    local = np.full((len(places), len(rows), samples.num_classes), np.nan)
    served, sent = local.copy(), np.zeros(local.shape[:2], dtype=np.int64)
    for start in range(0, len(rows), ROWS):
        chosen = slice(start, start + ROWS)
        pixels, _ = samples.batch(rows[chosen])
        if exits:
            trace = Trace()
            head(pixels, trace)
            found = torch.stack([one.softmax(dim=1) for one in exits.logits(trace)])
            local[[places.index(number) for number in after], chosen] = found.numpy()
        for place, both in enumerate(halves):
            if both is not None:
                answers = _served(*both, pixels, link, samples.num_classes, start)
                served[place, chosen], sent[place, chosen] = answers
    reached = [sum(number <= place for number in after) for place in places]
    device, server = zip(
        *(
            _costs(trained, place, exits.forward_flops_of(count) if exits else 0)
            for place, count in zip(places, reached, strict=True)
        ),
        strict=True,
    )
    last = torch.tensor(samples.num_classes - 1, device="cpu")
    return Ways(
        samples.labels[rows],
        [f"exit{place}" if place in after else "cut" for place in places],
        np.isin(places, after),
        np.array([both is not None for both in halves]),
        local,
        served,
        sent,
        np.array(device),
        np.array(server),
        Payload({}, {"label": last}).nbytes,
    )


def _halves(trained: Trained, place: int, blocks: int) -> tuple[Head, Tail] | None:
    """Cut the trained model after a block of the head; None if nothing can be sent from there.

    The server goes on with its copy of the head's other blocks. A trained codec fits but the cut,
    and where tokens are selected the server does not know how.
    """
    if place == blocks:
        return trained.head, trained.tail
    if trained.head.selector is not None:
        return None
    if trained.experiment.parts.codec.modules(trained.head.smashed_shape[1]) is not None:
        return None
    head, tail = trained.experiment.parts.model.split(trained.module, place)
    return head.eval(), tail.eval()


def _costs(trained: Trained, place: int, of_exits: int) -> tuple[int, int]:
    """Return operations of device and server for one image that is sent from a place."""
    head, tail = trained.head, trained.tail
    if place == len(hidden_shapes(head)):
        return head.forward_flops(1) + of_exits, tail.forward_flops(1, head.most_sent)
    if isinstance(head, ViTHead) and head.selector is not None:
        left = zip(head.blocks[place:], head.courses[0].in_blocks[place:], strict=True)
        width = head.smashed_shape[1]
        later = sum(flops.blocks_forward([block], tokens, width) for block, tokens in left)
        return head.forward_flops(1) - later + of_exits, 0
    head, tail = trained.experiment.parts.model.split(trained.module, place)
    return head.forward_flops(1) + of_exits, tail.forward_flops(1, head.smashed_shape[0])


def _served(
    head: Head, tail: Tail, pixels: Tensor, link: Link, num_classes: int, start: int
) -> tuple[Probabilities, NDArray[np.int64]]:
    """Send each image by itself; return the server's probabilities (B, C), and bytes (B,)."""
    tokens, attention = head(pixels)
    row = attention() if link.codec.needs_attention else tokens[..., 0]
    found = np.full((len(pixels), num_classes), np.nan)
    sent, arrivals, account = np.zeros(len(pixels), np.int64), dict[int, Arrival](), Account()
    label = torch.zeros(1, dtype=torch.int64, device="cpu")  # which nobody knows
    for number in range(len(pixels)):
        at, one = StepId(0, 0, 0, start + number), slice(number, number + 1)
        known = tokens[one], lambda one=one: row[one], label, num_classes, head.num_read
        data = link.up(encode(link.codec, Smashed(*known), at), at)
        crossing = link.over(data, at, "up", account)
        sent[number] = crossing.size
        if (arrival := link.received(crossing, at, tail)) is not None:
            arrivals[number] = arrival
    for images in batches(tail, arrivals):
        logits = tail(torch.cat([arrivals[number].received.tokens for number in images]))
        found[images] = logits.float().softmax(dim=1).numpy()
    return found, sent
