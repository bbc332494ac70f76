"""Recursive exits: each mixes its answer into that of the exit before.

Inspired by REEN (arXiv 2412.19587), whose exact recursion we could not read:

    q_i = classifier_i(e_i) ;  g_i = sigmoid(u_i . [e_i ; e_(i-1)])
    p_1 = softmax(q_1) ;       p_i = g_i softmax(q_i) + (1 - g_i) p_(i-1)
"""

from __future__ import annotations

import itertools

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fl_split.exits.exits import Exits, Place, Weight, places_of_exits
from fl_split.models import linear_flops as flops
from fl_split.models.beside import Trace
from fl_split.models.cut import Head, Tail
from fl_split.specs import STRICT


class RecursiveExits(Exits):
    """Classifiers whose answers are carried along.

    Attributes
    ----------
    gates : nn.ModuleList
        One for each exit but the first: linear layer from the features of two exits to (1,).
    """

    def __init__(
        self, place: Place, num_classes: int, weight: float, detach: bool, private: bool = False
    ) -> None:
        super().__init__(place, num_classes, weight, detach, private)
        pairs = itertools.pairwise(self.widths)
        self.gates = nn.ModuleList(nn.Linear(sum(widths), 1) for widths in pairs)

    def forward_flops_of(self, count: int) -> int:
        """Operations of the forward of the first `count` exits, on one image."""
        gates = sum(flops.forward(gate) for gate in self.gates[: max(0, count - 1)])
        return super().forward_flops_of(count) + gates

    def logits(self, trace: Trace) -> list[Tensor]:
        """Return the logarithms (B, C) of what each exit has of all up to it."""
        features = self.features(trace)
        own = [
            layer(one).float().log_softmax(dim=1)
            for layer, one in zip(self.classifiers, features, strict=True)
        ]
        found = own[:1]
        for gate, answer, now, before in zip(
            self.gates, own[1:], features[1:], features, strict=False
        ):
            share = gate(torch.cat([now, before], dim=1)).float()
            kept = nn.functional.logsigmoid(-share) + found[-1]
            found.append(torch.logaddexp(nn.functional.logsigmoid(share) + answer, kept))
        return found


@dataclass(frozen=True, config=STRICT)
class Recursive:
    """Classifiers after head blocks, each a learned mixture with the answer before it.

    Inspired by REEN; the server's classifier answers by itself.

    Parameters
    ----------
    after : int or str
        Number of a head block, or numbers, as ``'1, 2'``, or ``'all'``.
    weight : float
        Weight of each exit's loss, beside 1 of the server's.
    detach : bool
        Let no gradient of an exit go into the trunk.
    private : bool
        Let each client keep its own exits; they are neither sent nor averaged.
    """

    after: int | str = "all"
    weight: Weight = 1.0
    detach: bool = False
    private: bool = False

    def build(self, head: Head, tail: Tail, num_classes: int) -> tuple[Exits | None, None]:
        """Build the exits of the head.

        Raises
        ------
        ValueError
            The head has no such blocks.
        """
        before, behind = places_of_exits(self.after, head, tail)
        if behind:
            raise ValueError(
                f"after: recursive exits are behind blocks 1..{head.num_stages} of the head, whose "
                f"answers stay on the device, got {behind.after[0]}; plain exits may be behind the "
                "cut"
            )
        if before is None:
            return None, None
        how = self.weight, self.detach, self.private
        return RecursiveExits(before, num_classes, *how), None
