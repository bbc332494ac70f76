"""What one image costs in both halves together: operations and memory, in closed form."""

from __future__ import annotations

from fl_split.models.cut import Head, Tail, mean


def whole_flops(head: Head, tail: Tail, samples: int) -> int:
    """Operations of forward and backward of all parts on so many images, uncompressed."""
    others = [tail] if head.end is None else [tail, head.end]
    beside = [*head.parts_beside, *tail.parts_beside]
    total = head.flops(samples) + sum(part.flops(samples) for part in beside)
    sent = [course.sent for course in head.courses]
    return total + mean(sum(part.flops(samples, tokens) for part in others) for tokens in sent)


def whole_forward_flops(head: Head, tail: Tail, samples: int) -> int:
    """Operations of a forward pass of head, tail and end, without what is beside the head."""
    others = [tail] if head.end is None else [tail, head.end]
    sent = [course.sent for course in head.courses]
    return head.forward_flops(samples) + mean(
        sum(part.forward_flops(samples, tokens) for part in others) for tokens in sent
    )


def backward_alone(head: Head) -> int:
    """Operations of a backward pass from the losses of exits alone, on one image.

    A gradient that begins before the cut takes its share of the trunk, as if all stages were alike.
    """
    parts, stages = head.parts_beside, head.num_stages
    trunk = head.flops(1) - head.forward_flops(1)
    reach = max((part.reach(stages) for part in parts), default=0)
    return trunk * reach // stages + sum(part.flops(1) - part.forward_flops(1) for part in parts)


def whole_activation_bytes(head: Head, tail: Tail, samples: int) -> int:
    """Estimate what autograd keeps of all parts for so many images, uncompressed, in bytes."""
    tokens = head.most_sent
    total = head.activation_bytes(samples) + tail.activation_bytes(samples, tokens)
    if head.end is None:
        return total
    return total + head.end.activation_bytes(samples, head.end.num_tokens or tokens)
