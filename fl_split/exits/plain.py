"""Plain exits: a linear classifier after each of some blocks (arXiv 2407.14320)."""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.exits.exits import Exits, Weight, places_of_exits
from fl_split.models.beside import Trace
from fl_split.models.cut import Head, Tail
from fl_split.specs import STRICT


class PlainExits(Exits):
    """Each classifier by itself."""

    def logits(self, trace: Trace) -> list[Tensor]:
        """Return logits (B, C) of each exit."""
        pairs = zip(self.classifiers, self.features(trace), strict=True)
        return [classifier(features) for classifier, features in pairs]


@dataclass(frozen=True, config=STRICT)
class Plain:
    """A linear classifier after each of some blocks, trained beside the rest.

    The paper's regimes "joint" and "disjoint": with gradients into the trunk all learn together,
    as the sum of all losses; detached, the trunk learns from the last classifier alone. The norm
    before each classifier is ours. Exits behind the cut are the server's.

    Parameters
    ----------
    after : int or str
        Number of a block, or numbers, as ``'1, 3'``, of the whole model; or ``'all'`` of the
        head.
    weight : float
        Weight of each exit's loss, beside 1 of the last classifier's.
    detach : bool
        Let no gradient of an exit go into the trunk.
    private : bool
        Let each client keep its own exits; they are neither sent nor averaged.
    """

    after: int | str = "all"
    weight: Weight = 1.0
    detach: bool = False
    private: bool = False

    def build(self, head: Head, tail: Tail, num_classes: int) -> tuple[Exits | None, Exits | None]:
        """Build the exits of both halves."""
        how = self.weight, self.detach, self.private
        before, behind = [
            PlainExits(place, num_classes, *how) if place else None
            for place in places_of_exits(self.after, head, tail, self.private)
        ]
        return before, behind
