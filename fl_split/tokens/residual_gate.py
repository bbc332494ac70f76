"""Goal-oriented token selection (Devoto et al., arXiv 2405.02330), with exact counts.

After the paper's abstract and the first author's code base, `peekvit`; the body of the paper was
not at hand, and nothing of its results is claimed. See :mod:`fl_split.tokens.gates` for what is
done otherwise.
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


@dataclass(frozen=True, config=STRICT)
class ResidualGate(GatedSelection):
    """After 2405.02330: a budget token scaled by the rate, gates of each block for itself.

    Token g = sigmoid(w x / tau + beta), threshold theta = sigmoid(v t) of the budget token t,
    mask relu(g - theta).

    Parameters
    ----------
    rate : float
        Share of the patches that go on, in (0, 1]: ceil(rate P) of P.
    after : int
        Block of the client after which they are chosen, from 1; 0 is the last one.
    tau, beta : float
        Temperature and offset of scores.
    trained_at : "any", "image" or "rate"
        Whether each step of a client draws a rate from (0, 1], so that one model serves all of
        them, each image does (the paper), or both train at `rate`.
    rate_mode : "exact_topk" or "threshold"
        Whether that many go on, or those whose score is above the threshold (the paper).
    penalty : float
        Weight of (2 - rate) times the squared excess of the mean mask over the rate, summed over
        gates; 0 is off. The paper's code has 0.01.
    """

    rate: Rate = 0.5
    after: After = 0
    tau: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    beta: Annotated[float, Field(allow_inf_nan=False)] = 2.0
    trained_at: Trained = "any"
    rate_mode: RateMode = "exact_topk"
    penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    def selector(self, sizes: Sizes) -> Selector:
        """Build it."""
        return ResidualGates(self, sizes)

    def beside(self) -> Penalty | None:
        """Return the penalty, if it has a weight."""
        return Excess(self.penalty) if self.penalty else None


class ResidualGates(Gated):
    """Masks of each block stand for themselves."""

    def __init__(self, spec: ResidualGate, sizes: Sizes) -> None:
        super().__init__(spec, sizes, bias=None)
        self.tau, self.beta = spec.tau, spec.beta
        self.token = nn.Parameter(DEVIATION * torch.randn(sizes.width, device="cpu"))

    def budget(self, rate: float | Tensor) -> Tensor:
        """Scale the trained vector."""
        return rate * self.token

    def rating(
        self, score: Tensor, threshold: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return g, and relu(g - theta)."""
        found = torch.sigmoid(score / self.tau + self.beta)
        return found, torch.relu(found - torch.sigmoid(threshold))


class Excess(Penalty):
    """Squares what mean masks are above the rate, the more the smaller that is."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def of_means(self, means: list[Tensor], rate: float | Tensor) -> Tensor:
        """Return weight E (2 - rate) sum relu(mean - rate)^2."""
        excess = torch.stack([torch.relu(mean - rate).square() for mean in means])
        return self.weight * ((2 - rate) * excess.sum(dim=0)).mean()
