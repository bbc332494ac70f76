"""What one step will take of memory and operations, before it is tried."""

from __future__ import annotations

from fl_split.exchange.protocol import Exchange
from fl_split.models.costs import whole_activation_bytes, whole_flops
from fl_split.models.cut import Head, Tail

FLOAT_BYTES = 4

MANY_TOKENS = 4096
"""Tokens of an image from which on a step takes minutes, as attention grows with their square."""

PREFIXES = "", "k", "M", "G", "T", "P"


def check_demand(head: Head, tail: Tail, batch_size: int, free: int) -> list[str]:
    """Return what should be told of the size of a step on one batch of one client.

    `free` is the memory that there is, in bytes. What is needed is what autograd keeps of a
    batch, of head and tail; weights, optimisers and other clients come on top.

    Raises
    ------
    ValueError
        One batch does not fit into memory.
    """
    needed = whole_activation_bytes(head, tail, batch_size)
    tokens, size = head.smashed_shape[0], head.image_shape[-1]
    image = f"images of {size} x {size} pixels"
    if head.has_attention:
        image += f" are {tokens:,} tokens each"
    step = (
        f"a step on a batch of {batch_size} takes about {_short(needed)}B of memory and "
        f"{_short(whole_flops(head, tail, batch_size))}FLOP"
    )
    less = "image_size=224 and patch_size=16" if head.has_attention else "image_size=224"
    if needed > free:
        raise ValueError(
            f"{image}; {step}, and {_short(free)}B are free; set less, for example {less} in "
            "model, or a smaller batch_size"
        )
    if head.has_attention and tokens > MANY_TOKENS:
        return [f"{image}; {step}; {less} take less"]
    return []


COPIES = 4
"""Of each weight that a client holds: itself, its gradient, and two moments of Adam."""


def client_bytes(head: Head, tail: Tail, batch_size: int, exchange: Exchange) -> int:
    """Estimate the memory of a client: weights, gradients, moments, and what autograd keeps.

    `exchange` says whether it trains the whole model, and what it keeps beside. Images, code and
    buffers come on top.
    """
    weights = sum(one.numel() for one in head.parameters())
    kept = head.activation_bytes(batch_size)
    kept += sum(part.activation_bytes(batch_size) for part in head.parts_beside)
    if head.end is not None:
        kept += head.end.activation_bytes(batch_size, head.end.num_tokens or head.most_sent)
    if exchange.trains_whole_models:
        weights += sum(one.numel() for one in tail.parameters())
        kept = whole_activation_bytes(head, tail, batch_size)
    return kept + (COPIES + exchange.copies_kept) * FLOAT_BYTES * weights


def _short(number: float) -> str:
    """Write a number with three digits and a prefix of SI."""
    power = min(max(len(str(round(number))) - 1, 0) // 3, len(PREFIXES) - 1)
    return f"{number / 1000**power:.3g} {PREFIXES[power]}"
