"""The loss that a server minimises: that of the tail's classifier, and those of its exits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from fl_split.codecs import Received
from fl_split.exchange.serving import through
from fl_split.exits import Exits, exits_of
from fl_split.models.cut import Tail
from fl_split.models.parts import Parts
from fl_split.recipe.loss import CrossEntropy


def learning_exits(tail: Tail, trains: Parts) -> Exits | None:
    """Return the exits of `tail` if they learn in a phase: where the tail does, and they too."""
    return exits_of(tail) if {"exits", "tail"} <= trains else None


def answers(tail: Tail, exits: Exits | None, received: Sequence[Received]) -> list[Tensor]:
    """Return logits (K, C) of the rows of all clients: of `tail`, then of each exit."""
    if exits is None:
        return [through(tail, received).float()]
    return [*through(partial(exits.with_tail, tail), received).unbind(dim=1)]


def joint_loss(
    loss: CrossEntropy,
    exits: Exits | None,
    logits: Sequence[Tensor],
    received: Sequence[Received],
    weights: Sequence[float],
) -> tuple[Tensor, list[float]]:
    """Return sum_k weights[k] (loss_k + weight of exits sum_e loss_ke), and every loss_k.

    loss_k is that of the tail's classifier alone, to which an algorithm may have added a term that
    exits do not have. It is not a number where that of an exit is not finite, so that the client
    is found which spoils the sum.
    """
    joint, losses = loss.joint(logits[0], received, weights)
    if exits is None:
        return joint, losses
    plain = CrossEntropy(loss.label_smoothing)
    for of_exit in logits[1:]:
        more, values = plain.joint(of_exit, received, weights)
        joint = joint + exits.weight * more
        losses = [one + 0.0 * value for one, value in zip(losses, values, strict=True)]
    return joint, losses
