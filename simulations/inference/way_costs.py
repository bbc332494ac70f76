"""What ways cost: operations of the device up to a place, and of the server behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_split.exchange.link import Link
from fl_split.models import linear_flops as flops
from fl_split.models.cut import Head
from fl_split.models.vit import ViTHead
from simulations.inference.trained import Trained
from simulations.system.coding import coding

Integers = NDArray[np.int64]


def operations(
    trained: Trained, places: Sequence[int], kept: Integers
) -> tuple[Integers, Integers, Any]:
    """Return operations by place, of blocks and of the server; and those of the encoder.

    They are those of each image, if it has kept so many patches as no other needs to.
    """
    head = trained.head
    if head.is_ragged:
        counts, of_image = np.unique(kept, return_inverse=True)
        each = [replace(trained, head=head.keeping(int(count))) for count in counts]
        found = [operations(one, places, kept) for one in each]
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


def behind_flops(
    trained: Trained, places: Sequence[int], kept: Integers, server: Integers
) -> Integers:
    """Return operations from places to each exit of the server and to its end, with all exits.

    They are (E + 1, P), or (E + 1, P, N); `server` are those to the end, without exits. E may be 0.
    """
    exits = trained.exits_behind
    if exits is None:
        return server[None]
    asked = [exits.forward_flops_of(count + 1) for count in range(len(exits.after))]
    of_exits = np.array([*asked, asked[-1]]).reshape(-1, *[1] * server.ndim)
    found = [_flops_between(trained, places, number, kept) for number in exits.after]
    return np.stack([*found, server]) + of_exits


def _flops_between(
    trained: Trained, places: Sequence[int], number: int, kept: Integers
) -> Integers:
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


def coding_flops(link: Link, head: Head) -> tuple[int, int]:
    """Return operations of the codec on one image, packing and unpacking, by measured constants.

    All of a chain count on the numbers that go in, as no other number is known for each image.
    """
    cost = coding(repr(link.codec).lower())
    numbers = head.most_sent * head.smashed_shape[1]
    sides = zip(cost.first, cost.others, strict=True)
    device, server = (int(numbers * (first + others)) for first, others in sides)
    return device, server
