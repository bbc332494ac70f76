"""Clipping: gradients are made shorter before the optimiser takes its step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.specs import STRICT
from fl_split.tables import Table


@runtime_checkable
class Clip(Protocol):
    """What becomes of the gradients of one step."""

    def clipped(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return gradients (P,), of one half or of both, as the optimiser gets them."""
        ...


@dataclass(frozen=True, config=STRICT)
class NoClip:
    """Gradients as they are."""

    def clipped(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return them."""
        return gradients


@dataclass(frozen=True, config=STRICT)
class Norm:
    """The Euclidean norm is at most `limit` (Pascanu et al., ICML 2013).

    It is the norm of head and tail together where one process has both gradients: in `fedavg`
    and its relatives, `local` and `centralised`. In split learning the tail steps before the head's
    gradient exists, so each half has its own.

    Parameters
    ----------
    limit : float
        Largest norm.
    halves : bool
        Clip head and tail by their own norms also where one process has both gradients. Then
        `sflv1` equals `fedavg`.
    """

    limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    halves: bool = False

    def clipped(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return gradients that point the same way, none of them longer."""
        norms = [float(gradient.norm()) for gradient in gradients]
        if not self.halves:
            norms = [math.hypot(*norms)] * len(norms)
        shares = [min(1.0, self.limit / norm) if norm else 1.0 for norm in norms]
        return [g if share == 1 else g * share for g, share in zip(gradients, shares, strict=True)]


CLIPS: Table[type[Clip]] = Table(Clip, "fl_split.clips", {"none": NoClip, "norm": Norm})
