"""The loss of what is beside a head: the client minimises it without the server."""

from __future__ import annotations

from torch import Tensor

from fl_split.codecs import Received
from fl_split.exchange.mixing import mixed_targets
from fl_split.exchange.protocol import Batch
from fl_split.models.beside import Trace
from fl_split.models.cut import Head
from fl_split.recipe.loss import CrossEntropy


def local_loss(head: Head, trace: Trace, batch: Batch, loss: CrossEntropy) -> Tensor:
    """Return the sum of the losses of all parts beside `head`, on one batch."""
    targets = mixed_targets(batch.labels, batch.mixed, batch.num_classes)

    def of_logits(logits: Tensor) -> Tensor:
        return loss.of(logits.float(), Received(logits, targets))

    losses = [part.loss(trace, of_logits) for part in head.parts_beside]
    total: Tensor = sum(losses[1:], start=losses[0])
    return total.float()
