"""All ways that an image can take: out at an exit, or over the cut from one of several places.

Every way of every image is computed once; policies then only choose among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_split.codecs import Smashed
from fl_split.exchange.account import Account
from fl_split.exchange.link import Arrival, Link
from fl_split.exchange.serving import batches, through
from fl_split.exchange.split import encode
from fl_split.exits import Exits, exits_of
from fl_split.models.beside import Trace
from fl_split.models.cut import Head, Tail
from fl_split.payload import Payload
from fl_split.seeds import StepId
from simulations.data.samples import Samples
from simulations.inference.trained import Trained
from simulations.inference.way_costs import behind_flops, coding_flops, operations

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
    carrying : Ways, optional
        The same of images that take the answer of the last exit along, where they do.
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
    carrying: Ways | None = None

    @property
    def scarce(self) -> str:
        """The column of summaries that counts what is sent: uses of a channel, or bytes."""
        return "channel_uses" if self.sent_uses.any() else "bytes_up"


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
    exits, blocks = trained.exits, trained.head.num_stages
    if owner is None:
        owner = np.arange(len(rows)) % trained.experiment.clients
    after = list(exits.after) if exits else []
    places = sorted({*after, blocks})
    found = _answers(trained, samples, rows, link, owner, places)
    trunk, server, encoder = operations(trained, places, found.kept)
    reached = [sum(number <= place for number in after) for place in places]
    return Ways(
        samples.labels[rows],
        [f"exit{place}" if place in after else "cut" for place in places],
        np.isin(places, after),
        found.can_send,
        found.local,
        found.served[0],
        found.sent[0],
        found.sent[1],
        trunk,
        np.array([exits.forward_flops_of(count) if exits else 0 for count in reached]),
        encoder,
        server,
        coding_flops(link, trained.head),
        answer_bytes(samples.num_classes),
        owner,
        _behind(trained, found, behind_flops(trained, places, found.kept, server)),
    )


def answer_bytes(num_classes: int) -> int:
    """Return the bytes of the class that the server sends back."""
    return Payload({}, {"label": torch.tensor(num_classes - 1, device="cpu")}).nbytes


class _Answers(NamedTuple):
    """What exits and the server say, as in :class:`Ways`; what was sent and how much was kept."""

    can_send: NDArray[np.bool_]
    local: Probabilities
    served: Probabilities
    sent: NDArray[np.int64]
    kept: NDArray[np.int64]


def _answers(
    trained: Trained,
    samples: Samples,
    rows: NDArray[np.int64],
    link: Link,
    owner: NDArray[np.int64],
    places: Sequence[int],
) -> _Answers:
    """Run images through the head, ask its exits, and send them from all places."""
    exits, head, later = trained.exits, trained.head, trained.exits_behind
    halves = [_halves(trained, place, head.num_stages) for place in places]
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
            said = _said(trained, exits, trace, owner[chosen])
            local[[places.index(number) for number in exits.after], chosen] = said
        pairs = zip(owner[chosen].tolist(), rows[chosen].tolist(), strict=True)
        steps = [StepId(trained.experiment.seed, 1, *pair) for pair in pairs]
        for place, both in enumerate(halves):
            if both is not None:
                answers = _served(*both, pixels, link, samples.num_classes, steps)
                served[:, place, chosen], sent[:, place, chosen] = answers
    can_send = np.array([both is not None for both in halves])
    return _Answers(can_send, local, served, sent, kept)


def _said(trained: Trained, exits: Exits, trace: Trace, owner: NDArray[np.int64]) -> Probabilities:
    """Return probabilities (E, B, C) of exits; where clients keep their own, of each owner's."""
    own = trained.exits_of_clients
    if not own:
        return _probabilities(exits, trace)
    found = np.full((len(exits.after), len(owner), trained.test.num_classes), np.nan)
    for client in np.unique(owner).tolist():
        images = owner == client
        found[:, images] = _probabilities(own.get(client, exits), trace)[:, images]
    return found


def _probabilities(exits: Exits, trace: Trace) -> Probabilities:
    return torch.stack([one.softmax(dim=1) for one in exits.logits(trace)]).numpy()


def _behind(trained: Trained, found: _Answers, operations: NDArray[np.int64]) -> Behind | None:
    later = trained.exits_behind
    return Behind(later.names, found.served[1:], operations) if later else None


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
