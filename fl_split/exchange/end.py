"""The end of a U-shape: the last stages on the client, where the loss is."""

from __future__ import annotations

from torch import Tensor

from fl_split.codecs import Received
from fl_split.exchange.split import randomness
from fl_split.flat import Flat, trained
from fl_split.models.cut import Head
from fl_split.recipe.loss import CrossEntropy
from fl_split.recipe.precision import FP32, Precision
from fl_split.seeds import StepId


def conclude(
    head: Flat[Head],
    received: Received,
    at: StepId,
    loss: CrossEntropy,
    precision: Precision = FP32,
) -> tuple[float, Tensor, Tensor]:
    """Return the loss, its gradient in the weights of the end, and in the middle's output."""
    end = head.module.end
    assert end is not None
    leaf = received.tokens.detach().requires_grad_()
    with randomness(end, "end", at), precision.forward(leaf):
        logits = end(leaf).float()
    value = loss.of(logits, received)
    gradient, (of_output,) = precision.differentiate(head, [value], inputs=[leaf])
    return float(value.detach()), gradient[_place_of_end(head)], of_output


def add_end(head: Flat[Head], gradient: Tensor, of_end: Tensor) -> Tensor:
    """Put the gradient of the end's weights into one of the head's, in place."""
    gradient[_place_of_end(head)] += of_end
    return gradient


def _place_of_end(head: Flat[Head]) -> slice:
    """Where the end is in the head's vector: last, as it is the last module of a head."""
    assert head.module.end is not None
    return slice(-sum(parameter.numel() for parameter in trained(head.module.end)), None)
