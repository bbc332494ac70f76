"""Adaptive semantic token communication, ASTC (arXiv 2505.17604): its token selector, exactly.

After the official code; its codec and its controller are not part of this. See
:mod:`fl_split.tokens.gates` for what is done otherwise.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fl_split.models.selector import Selector, Sizes
from fl_split.specs import STRICT
from fl_split.tokens.gates import DEVIATION, Gated, GatedSelection, Penalty, RateMode, Trained
from fl_split.tokens.selection import After, Rate

BIAS = 5.0
"""Of scores, at first; thresholds begin with its negative, so that masks are near 1."""


@dataclass(frozen=True, config=STRICT)
class DualGate(GatedSelection):
    """After 2505.17604 (ASTC): a budget token between two vectors, masks that only fall.

    The budget token is t = rate t_low + (1 - rate) t_up. Mask relu(sigmoid(w x + b) - sigmoid(v t
    + c)), with b = 5 and c = -5 at first, times the mask of the gate before.

    Parameters
    ----------
    rate : float
        Share of the patches that go on, in (0, 1]: ceil(rate P) of P.
    after : int
        Block of the client after which they are chosen, from 1; 0 is the last one.
    trained_at : "any", "image" or "rate"
        Whether each step of a client draws a rate from (0, 1], so that one model serves all of
        them, each image does (the paper), or both train at `rate`.
    rate_mode : "exact_topk" or "threshold"
        Whether that many go on, or those whose score is above the threshold (the paper).
    penalty, inner : float
        Weights of what the mean mask is off the rate by more than `slack`, of the last gate and,
        on average, of those before; 0 is off. The paper's code has 1 and 0.5.
    slack : float
        Of the penalty.
    """

    rate: Rate = 0.5
    after: After = 0
    trained_at: Trained = "any"
    rate_mode: RateMode = "exact_topk"
    penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    inner: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    slack: Annotated[float, Field(ge=0, lt=1)] = 0.02

    def selector(self, sizes: Sizes) -> Selector:
        """Build it."""
        return DualGates(self, sizes)

    def beside(self) -> Penalty | None:
        """Return the penalty, if it has a weight."""
        weights = self.penalty, self.inner
        return Distance(*weights, self.slack) if any(weights) else None


class DualGates(Gated):
    """The mask of a gate is multiplied by that of the gate before."""

    def __init__(self, spec: DualGate, sizes: Sizes) -> None:
        super().__init__(spec, sizes, bias=BIAS)
        self.low = nn.Parameter(DEVIATION * torch.randn(sizes.width, device="cpu"))
        self.up = nn.Parameter(DEVIATION * torch.randn(sizes.width, device="cpu"))

    def budget(self, rate: float | Tensor) -> Tensor:
        """Return the point between the two trained vectors."""
        return rate * self.low + (1 - rate) * self.up

    def rating(
        self, score: Tensor, threshold: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return scores, and masks that are at most those of the gate before."""
        found = torch.sigmoid(score)
        own = torch.relu(found - torch.sigmoid(threshold))
        return found, own if mask is None else own * mask


class Distance(Penalty):
    """Takes what mean masks are off the rate."""

    def __init__(self, weight: float, inner: float, slack: float) -> None:
        super().__init__()
        self.weight, self.inner, self.slack = weight, inner, slack

    def of_means(self, means: list[Tensor], rate: float | Tensor) -> Tensor:
        """Return weight times that of the last gate, and inner times the mean of the others."""
        off = [torch.relu((mean - rate).abs() - self.slack).mean() for mean in means]
        *before, last = off
        total = self.weight * last
        return total + self.inner * torch.stack(before).mean() if before else total
