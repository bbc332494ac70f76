"""Trials before a run: does the link carry the output of the head, and how much memory it takes."""

from __future__ import annotations

import torch
from torch import nn

from fl_split.accelerators import device_of
from fl_split.activations import activation_bytes, saved
from fl_split.codecs import CODECS, Codec, Smashed
from fl_split.exchange.account import Way
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch, Exchange
from fl_split.exchange.split import encode
from fl_split.exchange.whole import joined
from fl_split.models.cut import Head, Tail
from fl_split.payload import Payload
from fl_split.seeds import StepId, generator, seeded

AT = StepId(0, 0, 0, 0)
"""Where trials take their randomness from."""


def check_attention(codec: Codec, head: Head, model: str) -> None:
    """Raise ValueError if `codec` needs attention and the model has none."""
    if codec.needs_attention and not head.has_attention:
        name = repr(codec).partition("(")[0].lower()
        others = ", ".join(name for name, kind in CODECS.items() if not kind.needs_attention)
        raise ValueError(
            f"{name} needs CLS attention, which {model} does not have; use one of {others}"
        )


def check_channels(link: Link, is_ushape: bool) -> None:
    """Raise ValueError if what the codecs pack cannot be sent over the channels of `link`."""
    ways: dict[Way, str] = {"up": "channel", "down": "down_channel"}
    for way, key in ({**ways, "way back": "channel"} if is_ushape else ways).items():
        channel, codec = link.road(way)
        try:
            channel.check(codec)
            if codec.remembers and channel.can_lose(codec):
                raise ValueError(
                    f"{codec!r} relies on what the server has of earlier payloads, of which "
                    f"{channel!r} may lose some; take erasure(mode='retransmit')"
                )
            if channel.asks_snr and link.snr_db is None:
                raise ValueError(
                    f"{channel!r} asks for the noise in a cell; give a system with one, as 'cell()'"
                )
            if is_ushape and channel.can_lose(codec):
                raise ValueError(
                    f"{channel!r} may lose messages of {codec!r}, and a U-shape needs all four of "
                    "an exchange; use erasure(mode='retransmit'), or end=0"
                )
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None


@torch.no_grad()
def try_link(link: Link, head: Head, tail: Tail, num_classes: int) -> None:
    """Send two made-up samples to and fro; raise ValueError if that does not work."""
    if head.is_ragged and not link.codec.carries_counts:
        others = ", ".join(name for name, kind in CODECS.items() if kind().carries_counts)
        raise ValueError(
            f"{link.codec!r} cannot carry images of different numbers of tokens, which tokens by "
            f"threshold or with a rate for each image are; use one of {others}, or "
            "rate_mode='exact_topk' with trained_at='any'"
        )
    for course in head.courses:
        least = head.num_read + 1 if head.is_ragged else course.sent
        _try(link, head, tail, (course.sent, least), num_classes)


def _try(link: Link, head: Head, tail: Tail, counts: tuple[int, int], num_classes: int) -> None:
    """Do so with samples of so many tokens."""
    draw = generator(0, "trial")
    tokens = head.encoder(torch.randn(2, max(counts), head.smashed_shape[1], generator=draw))
    attention = torch.rand(tokens.shape[:2], generator=draw).softmax(dim=1)
    labels = torch.arange(2) % num_classes
    known = tokens, lambda: attention, labels, num_classes, head.num_read
    smashed = Smashed(*known, counts=torch.tensor(counts) if head.is_ragged else None)
    try:
        payload = encode(link.codec, smashed, AT)
        link.arrive(link.up(payload, AT), AT, tail)
        link.read(link.across(Payload(payload.carried), AT, "trial"), AT)
    except (KeyError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(f"does not fit tokens of shape {tuple(tokens.shape)}: {error}") from None


@torch.no_grad()
def remembered_bytes(codec: Codec, head: Head, samples: int) -> int:
    """Return bytes that each side remembers for a codec once so many samples have been sent."""
    if not codec.remembers:
        return 0
    tokens = head.encoder(torch.zeros(1, *head.smashed_shape, device=device_of(head)))
    attention, labels = tokens[..., 0], torch.zeros(1, dtype=torch.int64)
    payload = encode(codec, Smashed(tokens, lambda: attention, labels, 1, head.num_read), AT)
    return samples * sum(value.nbytes for value in payload.carried.values())


def memory_of_a_batch(
    exchange: Exchange, head: Head, tail: nn.Module, codec: Codec, samples: int, num_classes: int
) -> dict[str, int]:
    """Return bytes that autograd keeps for a batch: of the client's part, of the whole model.

    Both are the same where clients train whole models. Where a selector draws how many tokens
    there are, it is for all of them.
    """
    head = head.drawn_at(1.0)
    shape = samples, *head.image_shape
    device = device_of(head)
    pixels = torch.randn(shape, generator=generator(0, "trial")).to(device)
    labels = torch.arange(samples, device=device) % num_classes
    weights = [*head.parameters(), *tail.parameters()]
    with saved() as of_all, seeded(0, "trial"), exchange.precision.forward(pixels):
        logits = joined(head, tail, pixels)  # whose graph is kept so long
    whole = activation_bytes(of_all, weights)
    if exchange.trains_whole_models:
        return {"head": whole, "whole": whole}
    with saved() as of_head:
        batch = Batch(pixels, labels, num_classes)
        payload = exchange.smash(head, codec, batch, AT, {})
    if head.end:  # whose graph comes on top of the head's
        with seeded(0, "trial"):
            output = tail(codec.decode(payload).tokens).detach().requires_grad_()
            with saved() as of_end:
                logits = head.end(output)  # noqa: F841  (keeps the graph)
        of_head |= of_end
    return {"head": activation_bytes(of_head, weights), "whole": whole}
