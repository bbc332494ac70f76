"""The U-shape: the last stages are the client's too, and labels never leave it.

head -> encode -> | payload | -> decode -> middle -> | output          | -> end -> loss
head <- ......... | gradient | <- ........... middle <- | its gradient | <- end

An exchange has four transfers. What is sent is encoded as if all labels were 0; which rows
a codec makes of a batch does not depend on them, so that the client, who knows what it would
have sent, knows the targets of the rows that come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fl_split.codecs import Codec, Received, Smashed
from fl_split.exchange.split import Arrival, Place, compress, loss, randomness
from fl_split.flat import Flat, trained
from fl_split.models.cut import Head, Tail
from fl_split.payload import Payload


@dataclass(frozen=True)
class Targets:
    """What the rows of an output are compared with.

    Attributes
    ----------
    targets : Tensor
        (K,) int64 classes, or (K, C) float mixtures that sum to 1.
    weights : Tensor or None
        (K,) float loss weights of the rows; None is the plain mean.
    """

    targets: Tensor
    weights: Tensor | None = None


def smash_unlabelled(
    head: Head, codec: Codec, pixels: Tensor, labels: Tensor, num_classes: int, place: Place
) -> tuple[Payload, Targets]:
    """Client, forward: images to a payload that knows nothing of `labels`, and to targets.

    Like :func:`fl_split.exchange.split.smash` it gives the same again when repeated.
    """
    with randomness(head, "head", place):
        tokens, attention = head(pixels)
    attention = cache(attention)
    unknown = Smashed(tokens, attention, torch.zeros_like(labels), num_classes, head.num_read)
    payload = compress(codec, unknown, place)
    with torch.no_grad():
        own = Smashed(tokens.detach(), attention, labels, num_classes, head.num_read)
        received = codec.decode(compress(codec, own, place))
    return payload, Targets(received.targets, received.weights)


@dataclass(frozen=True)
class Passage:
    """Payloads that ran through the middle as one batch; `output` (rows, T, D) has the graph."""

    arrivals: Sequence[Arrival]
    output: Tensor

    def outputs(self) -> list[Tensor]:
        """What came out, by arrival, (K, T, D) each and without graph."""
        counts = [len(arrival.received.tokens) for arrival in self.arrivals]
        return list(self.output.detach().split(counts))


def traverse(middle: Tail, arrivals: Sequence[Arrival], place: Place) -> Passage:
    """Server, forward: run all arrivals through the middle as one batch.

    They must have the same number of tokens, and with batch norm each must come alone.
    """
    assert len(arrivals) == 1 or not middle.has_batch_norm
    tokens = [arrival.received.tokens for arrival in arrivals]
    with randomness(middle, "tail", place):
        return Passage(arrivals, middle(tokens[0] if len(tokens) == 1 else torch.cat(tokens)))


def retrace(
    middle: Flat[Tail], passage: Passage, gradients: Sequence[Tensor], weights: Sequence[float]
) -> tuple[list[Payload], Tensor]:
    """Server, backward: cut gradients, and the middle's of sum_k weights[k] loss_k.

    `gradients` are those of each client's own loss in its output, and so are the cut
    gradients. A client of weight 0 takes no part; its cut gradient means nothing.
    """
    scaled = torch.cat([g * weight for g, weight in zip(gradients, weights, strict=True)])
    leaves = [leaf for arrival in passage.arrivals for leaf in arrival.leaves.values()]
    gradient, cuts = middle.differentiate([passage.output], [scaled], inputs=leaves)
    if middle.statistics is not None:  # which know nothing of the weight
        gradient[middle.statistics] *= weights[0]
    following = iter(cuts)
    payloads = [
        Payload({name: next(following) / (weight or 1.0) for name in arrival.leaves})
        for arrival, weight in zip(passage.arrivals, weights, strict=True)
    ]
    return payloads, gradient


def conclude(
    head: Flat[Head], output: Tensor, targets: Targets, place: Place
) -> tuple[float, Tensor, Tensor]:
    """Client, end: the loss, its gradient in the weights of the end, and in `output`."""
    end = head.module.end
    assert end is not None
    leaf = output.detach().requires_grad_()
    with randomness(end, "end", place):
        logits = end(leaf)
    value = loss(logits, Received(leaf, targets.targets, targets.weights))
    gradient, (of_output,) = head.differentiate([value], inputs=[leaf])
    return float(value.detach()), gradient[_end(head)], of_output


def add_end(head: Flat[Head], gradient: Tensor, of_end: Tensor) -> Tensor:
    """Put the gradient of the end's weights into one of the head's, in place."""
    gradient[_end(head)] += of_end
    return gradient


def there_and_back(
    head: Flat[Head], middle: Flat[Tail], arrival: Arrival, place: Place
) -> tuple[float, Payload, Tensor, Tensor]:
    """Do all that lies between payload and cut gradient, in one process.

    Returns the loss, the cut gradient, and the gradients of the middle and of the end.
    """
    received = arrival.received
    passage = traverse(middle.module, [arrival], place)
    targets = Targets(received.targets, received.weights)
    value, of_end, of_output = conclude(head, passage.output, targets, place)
    (cut,), of_middle = retrace(middle, passage, [of_output], [1.0])
    return value, cut, of_middle, of_end


def _end(head: Flat[Head]) -> slice:
    """Where the end is in the head's vector: last, as it is the last module of a head."""
    assert head.module.end is not None
    return slice(-sum(parameter.numel() for parameter in trained(head.module.end)), None)
