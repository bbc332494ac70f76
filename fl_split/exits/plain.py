"""Plain exits: a linear classifier after each of some head blocks (arXiv 2407.14320)."""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.exits.exits import Exits, Weight, stages_with_exit
from fl_split.models.beside import Trace
from fl_split.models.cut import Head
from fl_split.specs import STRICT


class PlainExits(Exits):
    """Each classifier by itself."""

    def logits(self, trace: Trace) -> list[Tensor]:
        """Return logits (B, C) of each exit."""
        pairs = zip(self.classifiers, self.features(trace), strict=True)
        return [classifier(features) for classifier, features in pairs]


@dataclass(frozen=True, config=STRICT)
class Plain:
    """A linear classifier after each of some head blocks, trained beside the rest.

    The paper's regimes "joint" and "disjoint": with gradients into the trunk all learn together,
    as the sum of all losses; detached, the trunk learns from the server alone. The norm before
    each classifier is ours.

    Parameters
    ----------
    after : int or str
        Number of a head block, or numbers, as ``'1, 2'``, or ``'all'``.
    weight : float
        Weight of each exit's loss, beside 1 of the server's.
    detach : bool
        Let no gradient of an exit go into the trunk.
    """

    after: int | str = "all"
    weight: Weight = 1.0
    detach: bool = False

    def build(self, head: Head, num_classes: int) -> Exits:
        """Build the exits for `head`."""
        chosen = stages_with_exit(self.after, head)
        return PlainExits(head, chosen, num_classes, self.weight, self.detach)
