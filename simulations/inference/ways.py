"""All ways that an image can take: out at an exit, or over the cut from one of several places.

Every way of every image is computed once; policies then only choose among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_split.codecs import Smashed
from fl_split.exchange.account import Account
from fl_split.exchange.link import Arrival, Link
from fl_split.exchange.serving import batches, through
from fl_split.exchange.split import encode
from fl_split.exits import exits_of
from fl_split.models import linear_flops as flops
from fl_split.models.beside import Trace
from fl_split.models.cut import Head, Tail
from fl_split.models.vit import ViTHead
from fl_split.payload import Payload
from fl_split.seeds import StepId
from simulations.data.samples import Samples
from simulations.inference.trained import Trained
from simulations.system.coding import coding

ROWS = 128
"""Images that run through a head at once."""

Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class Behind:
    """What N images give at E exits behind the cut, and cost the server until there.

    Attributes
    ----------
    names : sequence of str
        Of the exits: `exit3` is behind the third block of the model.
    answers : array
        (E, P, N, C) their probabilities for what is sent from a place; not numbers where nothing
        can be sent, or the channel has lost it.
    flops : array
        (E + 1, P) operations of the server on an image from a place to an exit, with all exits
        that it passes; the last row is to the model's own classifier. Or (E + 1, P, N), as in
        :class:`Ways`.
    """

    names: Sequence[str]
    answers: Probabilities
    flops: NDArray[np.int64]


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
    sent_bytes, sent_uses : array
        (P, N) of the payload, on the way; uses of a channel by numbers that are sent as they are.
    trunk_flops, exit_flops : array
        (P,) operations of the device on one image up to a place: of its blocks, of all exits. Of
        the blocks they are (P, N) where images keep different numbers of tokens.
    encoder_flops : int or array
        Of a trained codec's encoder, for what is sent from the cut; (N,) in that case.
    server_flops : array
        (P,) operations of the server behind a place, or (P, N).
    coding_flops : tuple of int
        Operations of the codec on what is sent: of the device, of the server.
    answer_bytes : int
        Of the class that the server sends back.
    owner : array
        (N,) the client whose device takes the image.
    behind : Behind, optional
        Exits of the server.
    """

    labels: NDArray[np.int64]
    names: Sequence[str]
    has_exit: NDArray[np.bool_]
    can_send: NDArray[np.bool_]
    local: Probabilities
    served: Probabilities
    sent_bytes: NDArray[np.int64]
    sent_uses: NDArray[np.int64]
    trunk_flops: NDArray[np.int64]
    exit_flops: NDArray[np.int64]
    encoder_flops: int | NDArray[np.int64]
    server_flops: NDArray[np.int64]
    coding_flops: tuple[int, int]
    answer_bytes: int
    owner: NDArray[np.int64]
    behind: Behind | None = None


@torch.no_grad()
def ways_of(
    trained: Trained,
    samples: Samples,
    rows: NDArray[np.int64],
    link: Link,
    owner: NDArray[np.int64] | None = None,
) -> Ways:
    """Compute all ways of the images `rows` of `samples`, each sent by itself over `link`.

    `owner` is the client of each; by default all clients take turns.
    """
    exits, head, later = trained.exits, trained.head, trained.exits_behind
    blocks = head.num_stages
    if owner is None:
        owner = np.arange(len(rows)) % trained.experiment.clients
    after = list(exits.after) if exits else []
    places = sorted({*after, blocks})
    halves = [_halves(trained, place, blocks) for place in places]
    local = np.full((len(places), len(rows), samples.num_classes), np.nan)
    served = np.full((1 + (len(later.after) if later else 0), *local.shape), np.nan)
    sent = np.zeros((2, *local.shape[:2]), dtype=np.int64)
    kept = np.zeros(len(rows), dtype=np.int64)
    for start in range(0, len(rows), ROWS):
        chosen = slice(start, start + ROWS)
        pixels, _ = samples.batch(rows[chosen])
        if exits or head.is_ragged:
            trace = Trace()
            head(pixels, trace)
            kept[chosen] = trace.kept
        if exits:
            found = torch.stack([one.softmax(dim=1) for one in exits.logits(trace)])
            local[[places.index(number) for number in after], chosen] = found.numpy()
        for place, both in enumerate(halves):
            if both is not None:
                steps = [
                    StepId(trained.experiment.seed, 1, int(client), int(row))
                    for client, row in zip(owner[chosen], rows[chosen], strict=True)
                ]
                answers = _served(*both, pixels, link, samples.num_classes, steps)
                served[:, place, chosen], sent[:, place, chosen] = answers
    reached = [sum(number <= place for number in after) for place in places]
    trunk, server, encoder = _operations(trained, places, kept)
    last = torch.tensor(samples.num_classes - 1, device="cpu")
    return Ways(
        samples.labels[rows],
        [f"exit{place}" if place in after else "cut" for place in places],
        np.isin(places, after),
        np.array([both is not None for both in halves]),
        local,
        served[0],
        sent[0],
        sent[1],
        trunk,
        np.array([exits.forward_flops_of(count) if exits else 0 for count in reached]),
        encoder,
        server,
        _coding(link, head),
        Payload({}, {"label": last}).nbytes,
        owner,
        _behind(trained, served[1:], places, kept, server),
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
    if trained.exits_behind is not None:
        tail.beside.append(trained.exits_behind.from_stage(place))
    return head.eval(), tail.eval()


def _operations(
    trained: Trained, places: Sequence[int], kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Any]:
    """Return operations by place, of blocks and of the server; and those of the encoder.

    They are those of each image, if it has kept so many patches as no other needs to.
    """
    head = trained.head
    if head.is_ragged:
        counts, of_image = np.unique(kept, return_inverse=True)
        each = [replace(trained, head=head.keeping(int(count))) for count in counts]
        found = [_operations(one, places, kept) for one in each]
        trunk, server, encoder = (np.stack(one, axis=-1) for one in zip(*found, strict=True))
        return trunk[:, of_image], server[:, of_image], encoder[of_image]
    costs = np.array([_costs(trained, place, head.num_stages) for place in places])
    return costs[:, 0], costs[:, 1], head.most_sent * flops.forward(head.encoder)


def _costs(trained: Trained, place: int, blocks: int) -> tuple[int, int]:
    """Return operations of the device's blocks up to a place, and of the server behind it."""
    head, tail = trained.head, trained.tail
    encoder = head.most_sent * flops.forward(head.encoder)
    if place == blocks:
        return head.forward_flops(1) - encoder, tail.forward_flops(1, head.most_sent)
    if isinstance(head, ViTHead) and head.selector is not None:  # nothing is sent from here
        course, width = head.courses[0], head.smashed_shape[1]
        left = zip(head.blocks[place:], course.in_blocks[place:], strict=True)
        later = sum(flops.blocks_forward([block], tokens, width) for block, tokens in left)
        if place < head.selector.after:
            later += head.selector.forward_flops(head.blocks, course)
        return head.forward_flops(1) - encoder - later, 0
    head, tail = trained.experiment.parts.model.split(trained.module, place)
    return head.forward_flops(1), tail.forward_flops(1, head.smashed_shape[0])


def _behind(
    trained: Trained,
    answers: Probabilities,
    places: Sequence[int],
    kept: NDArray[np.int64],
    server: NDArray[np.int64],
) -> Behind | None:
    """Count operations from a place to each exit; `server` are those to the end, without exits."""
    exits = trained.exits_behind
    if exits is None:
        return None
    asked = [exits.forward_flops_of(count + 1) for count in range(len(exits.after))]
    of_exits = np.array([*asked, asked[-1]]).reshape(-1, *[1] * server.ndim)
    found = [_flops_between(trained, places, number, kept) for number in exits.after]
    return Behind(exits.names, answers, np.stack([*found, server]) + of_exits)


def _flops_between(
    trained: Trained, places: Sequence[int], number: int, kept: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return operations (P,) of the server from places to a block, or (P, N) by patches kept."""
    head, blocks = trained.head, trained.head.num_stages
    if head.is_ragged:
        counts, of_image = np.unique(kept, return_inverse=True)
        each = [replace(trained, head=head.keeping(int(count))) for count in counts]
        found = [_flops_between(one, places, number, kept) for one in each]
        return np.stack(found, axis=-1)[:, of_image]
    split, of_places = trained.experiment.parts.model.split, []
    for place in places:
        tokens = head.most_sent if place == blocks else head.smashed_shape[0]
        decoder = tokens * flops.forward(trained.tail.decoder) * (place == blocks)
        middle = split(trained.module, place, number)[1]
        of_places.append(decoder + middle.forward_flops(1, tokens))
    return np.array(of_places)


def _coding(link: Link, head: Head) -> tuple[int, int]:
    """Return operations of the codec on one image, packing and unpacking, by measured constants.

    All of a chain count on the numbers that go in, as no other number is known for each image.
    """
    cost = coding(repr(link.codec).lower())
    numbers = head.most_sent * head.smashed_shape[1]
    sides = zip(cost.first, cost.others, strict=True)
    device, server = (int(numbers * (first + others)) for first, others in sides)
    return device, server


def _served(
    head: Head,
    tail: Tail,
    pixels: Tensor,
    link: Link,
    num_classes: int,
    steps: Sequence[StepId],
) -> tuple[Probabilities, NDArray[np.int64]]:
    """Send each image by itself.

    Returns the server's probabilities (1 + E, B, C), at its end and at its exits, and bytes and
    uses of the channel (2, B).
    """
    exits = exits_of(tail)
    whole = partial(exits.with_tail, tail) if exits else tail
    trace = Trace()
    tokens, attention = head(pixels, *([trace] if head.is_ragged else []))
    row = attention() if link.codec.needs_attention else tokens[..., 0]
    counts = [tokens.shape[1]] * len(tokens) if trace.counts is None else trace.counts.tolist()
    answers = 1 + (len(exits.after) if exits else 0)
    found = np.full((answers, len(pixels), num_classes), np.nan)
    sent, arrivals, account = np.zeros((2, len(pixels)), np.int64), dict[int, Arrival](), Account()
    label = torch.zeros(1, dtype=torch.int64, device="cpu")  # which nobody knows
    for number, (at, count) in enumerate(zip(steps, counts, strict=True)):
        one = slice(number, number + 1), slice(count)  # alone it needs no padding
        known = tokens[one], lambda one=one: row[one], label, num_classes, head.num_read
        data = link.up(encode(link.codec, Smashed(*known), at), at)
        crossing = link.over(data, at, "up", account)
        sent[:, number] = crossing.size, crossing.uses
        if (arrival := link.received(crossing, at, tail)) is not None:
            arrivals[number] = arrival
    for images in batches(tail, arrivals):
        logits = through(whole, [arrivals[number].received for number in images]).float()
        shares = logits.view(len(images), answers, -1).softmax(dim=2)
        found[:, images] = shares.transpose(0, 1).numpy()
    return found, sent
