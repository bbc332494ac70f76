"""What gated selections share: a budget token, a gate for each block, a penalty.

One model serves all rates: a *budget token* at the end of the sequence tells the blocks which
share of the patches may go on. A *gate* is two linear layers: one scores each patch, the other
reads a threshold from the budget token. Patches that go on are multiplied by what their score is
above the threshold, which is how gates get a gradient. Training and testing do the same.

How many go on, `rate_mode` says. `exact_topk`: patches are ranked by score, and exactly
ceil(rate P) go on. `threshold`: those above the threshold do, as in both papers, where a penalty
on the mean of the mask is to bring the rate about.

Deviations from both papers: patches are taken out of the sequence, where their code multiplies
them by 0 and still lets them act as keys and values; by threshold the best patch goes on where
none is above it, where their code then lets all go on.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fl_split.models import linear_flops as flops
from fl_split.models.beside import Beside, Trace
from fl_split.models.selector import Course, Rating, Selector, Sizes
from fl_split.tokens.selection import Selection

Trained = Literal["any", "image", "rate"]
"""Rates in training: drawn from (0, 1] for each step of a client or each image, or `rate`."""

RateMode = Literal["exact_topk", "threshold"]
"""Whether ceil(rate P) patches go on, or those above the threshold."""


DEVIATION = 0.02
"""Standard deviation that budget tokens are drawn with."""


class GatedSelection(Selection):
    """What all descriptions of gates say."""

    rate: float
    after: int
    trained_at: Trained
    rate_mode: RateMode


class Gate(nn.Module):
    """The two scalar heads of one block: `score` of patches, `threshold` of the budget token.

    A `bias` is what scores begin with, and thresholds with its negative; None is no bias at all.
    """

    def __init__(self, width: int, bias: float | None) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=bias is not None)
        self.threshold = nn.Linear(width, 1, bias=bias is not None)
        if bias is not None:
            nn.init.constant_(self.score.bias, bias)
            nn.init.constant_(self.threshold.bias, -bias)


class Gated(Selector):
    """Gates behind the block where patches are chosen and behind every later one of the head.

    The first one chooses. The later ones, which find as many patches as may go on, multiply those
    by their masks.
    """

    num_extra = 1

    def __init__(self, spec: GatedSelection, sizes: Sizes, bias: float | None) -> None:
        super().__init__(spec.rate, spec.after, sizes)
        self.draws_rate = self.draws = spec.trained_at != "rate"
        self.draws_each = spec.trained_at == "image"
        self.by_threshold = spec.rate_mode == "threshold"
        number = sizes.depth - self.after + 1
        self.gates = nn.ModuleList(Gate(sizes.width, bias) for _ in range(number))

    @property
    def all_gates(self) -> list[Gate]:
        """Gates by block, the first of which is that of `after`."""
        return [cast(Gate, gate) for gate in self.gates]

    @abstractmethod
    def budget(self, rate: float | Tensor) -> Tensor:
        """Return the budget token (D,) of a rate, or (B, 1, D) of rates (B, 1, 1)."""

    @abstractmethod
    def rating(
        self, score: Tensor, threshold: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return scores (B, P) and the mask (B, P), of what the two linear layers give.

        These are `score` (B, P) and `threshold` (B, 1); `mask` is that of the gate before.
        """

    def chooses(self, number: int) -> bool:
        """Tell whether there is a gate behind this block."""
        return number >= self.after

    def extended(self, tokens: Tensor, rate: float | Tensor) -> Tensor:
        """Append the budget token."""
        budget = self.budget(rate if isinstance(rate, float) else rate[:, None, None])
        return torch.cat([tokens, budget.expand(len(tokens), 1, -1)], dim=1)

    def rated(
        self, number: int, block: Any, before: Tensor, tokens: Tensor, mask: Tensor | None
    ) -> Rating:
        """Rate patches by the gate behind `block`; in fp32, where scores near 1 differ."""
        gate = self.all_gates[number - self.after]
        with torch.autocast(tokens.device.type, enabled=False):
            patches, budget = tokens[:, self.sizes.num_read : -1].float(), tokens[:, -1].float()
            found = self.rating(gate.score(patches).squeeze(2), gate.threshold(budget), mask)
        return Rating(*found)

    def forward_flops(self, blocks: nn.ModuleList, course: Course) -> int:
        """Operations of the gates."""
        return self._of_gates(course, flops.forward)

    def flops(self, blocks: nn.ModuleList, course: Course) -> int:
        """Operations of the gates, forward and backward."""
        return self._of_gates(course, flops.training)

    def _of_gates(self, course: Course, of: Callable[[nn.Module], int]) -> int:
        total = 0
        for number, gate in enumerate(self.all_gates):
            first = course.in_blocks[self.after - 1] - self.num_extra - self.sizes.num_read
            patches = course.kept if number else first
            total += patches * of(gate.score) + of(gate.threshold)
        return total


class Penalty(Beside):
    """Base: a loss that brings the mean of masks near the rate; it has no weights of its own."""

    part = "gates"

    def loss(self, trace: Trace, of_logits: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the penalty of the masks in `trace`; masks have 0 for patches that are gone."""
        del of_logits
        means = [mask.mean(dim=1) for mask in trace.masks]
        return self.of_means(means, trace.rate)

    @abstractmethod
    def of_means(self, means: list[Tensor], rate: float | Tensor) -> Tensor:
        """Return the penalty of mean masks (B,), by gate; `rate` may be (B,) too."""

    def flops(self, samples: int) -> int:
        """Return 0: there are no products of matrices."""
        return 0

    def forward_flops(self, samples: int) -> int:
        """Return 0."""
        return 0
