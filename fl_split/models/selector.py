"""Which patches of an image go on, after one of the blocks of a head: the contract."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from fl_split.models.beside import Trace

ROUNDING = 1e-9
"""What a rate times a number of patches may be above a whole number, as 0.7 * 10 is above 7."""


class Sizes(NamedTuple):
    """What a selector is built for: width D, blocks of the head, tokens that are always kept."""

    width: int
    depth: int
    num_read: int


class Course(NamedTuple):
    """How many tokens of an image there are on their way through a head.

    Attributes
    ----------
    in_blocks : list[int]
        That each block computes with.
    sent : int
        That cross the cut.
    kept : int
        Patches that were chosen.
    """

    in_blocks: list[int]
    sent: int
    kept: int


class Rating(NamedTuple):
    """What patches (B, P) are ranked by, and what those that go on are multiplied by, if so."""

    scores: Tensor
    mask: Tensor | None = None


class Selector(nn.Module, ABC):
    """Keeps the first `num_read` tokens and ceil(rate P) of the P patches of each image.

    Patches that do not go on are taken out of the sequence, so neither later blocks of the head
    nor the tail see them. Those that do stay in order.

    Attributes
    ----------
    rate : float
        Share of the patches, in evaluation.
    after : int
        Number of the block behind which patches are chosen, from 1.
    draws_rate : bool
        Whether each training forward has another rate, drawn from (0, 1].
    draws : bool
        Whether a training forward draws random numbers.
    num_extra : int
        Tokens that are in the sequence for the selector's own use; they come last, and do not
        cross the cut.
    """

    draws_rate: bool = False
    draws: bool = False
    num_extra: int = 0

    def __init__(self, rate: float, after: int, sizes: Sizes) -> None:
        super().__init__()
        if after > sizes.depth:
            raise ValueError(
                f"after={after} is behind the cut: the client has blocks 1..{sizes.depth}; name "
                "one of them, or 0 for the last"
            )
        self.rate, self.after, self.sizes = rate, after or sizes.depth, sizes

    @abstractmethod
    def rated(
        self, number: int, block: Any, before: Tensor, tokens: Tensor, mask: Tensor | None
    ) -> Rating:
        """Rate the patches in `tokens`, which `block`, the `number`-th, made of `before`.

        `mask` is that of an earlier block, of the same patches. Tokens are (B, N, D).
        """

    def chooses(self, number: int) -> bool:
        """Tell whether patches are rated after this block."""
        return number == self.after

    def extended(self, tokens: Tensor, rate: float) -> Tensor:
        """Return the sequence (B, N, D) with the selector's own tokens at its end."""
        del rate
        return tokens

    def forward(
        self, blocks: Iterable[nn.Module], tokens: Tensor, trace: Trace | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the blocks of a head on tokens (B, N, D), and let patches go on the way.

        Returns what the last block got and what it gave, both of the tokens that are left.
        """
        rate, patches = self.present_rate(), tokens.shape[1] - self.sizes.num_read
        kept, mask = torch.arange(patches, device=tokens.device).expand(len(tokens), -1), None
        tokens = before = self.extended(tokens, rate)
        for number, block in enumerate(blocks, start=1):
            before, tokens = tokens, block(tokens)
            if self.chooses(number):
                scores, mask = self.rated(number, block, before, tokens, mask)
                if trace is not None and mask is not None:
                    trace.masks.append(over_all(mask, kept, patches))
                if number == self.after:
                    kept = highest(scores, num_kept(rate, patches))
                    before, tokens = self._left(before, kept), self._left(tokens, kept)
                    mask = None if mask is None else mask.gather(1, kept)
                if mask is not None:
                    tokens = self._scaled(tokens, mask)
            if trace is not None:
                trace.hidden.append(self._own(tokens))
        if trace is not None:
            trace.rate = rate
            trace.masks = trace.masks or [over_all(torch.ones_like(kept), kept, patches)]
        return self._own(before), self._own(tokens)

    def present_rate(self) -> float:
        """Return the rate of this forward; a drawn one is from torch's global generator."""
        if self.training and self.draws_rate:
            return 1 - float(torch.rand((), device="cpu"))
        return self.rate

    def with_rate(self, rate: float) -> Self:
        """Return a selector of the same weights that keeps another share, in training too.

        Raises
        ------
        ValueError
            The rate is not in (0, 1].
        """
        if not 0 < rate <= 1:
            raise ValueError(f"rate must be in (0, 1], got {rate:g}")
        found = copy.copy(self)
        found.rate, found.draws_rate = rate, False
        return found

    def courses(self, tokens: int) -> list[Course]:
        """Return what may become of `tokens`, each as likely as the others."""
        patches = tokens - self.sizes.num_read
        counts = range(1, patches + 1) if self.draws_rate else [num_kept(self.rate, patches)]
        return [self._course(tokens, count) for count in counts]

    def _course(self, tokens: int, count: int) -> Course:
        sent, later = self.sizes.num_read + count, self.sizes.depth - self.after
        blocks = [tokens + self.num_extra] * self.after + [sent + self.num_extra] * later
        return Course(blocks, sent, count)

    def flops(self, blocks: nn.ModuleList, course: Course) -> int:
        """Operations of rating on one image, forward and backward."""
        return self.forward_flops(blocks, course)

    def forward_flops(self, blocks: nn.ModuleList, course: Course) -> int:
        """Operations of the forward alone."""
        del blocks, course
        return 0

    def _own(self, tokens: Tensor) -> Tensor:
        return tokens[:, : tokens.shape[1] - self.num_extra]

    def _left(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """Return the read tokens, the patches at `kept` (B, K) and the selector's own tokens."""
        read, end = self.sizes.num_read, tokens.shape[1] - self.num_extra
        places = kept[..., None].expand(-1, -1, tokens.shape[2])
        patches = tokens[:, read:end].gather(1, places)
        return torch.cat([tokens[:, :read], patches, tokens[:, end:]], dim=1)

    def _scaled(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Multiply patches by `mask` (B, K)."""
        read, end = self.sizes.num_read, tokens.shape[1] - self.num_extra
        patches = tokens[:, read:end] * mask[..., None]
        return torch.cat([tokens[:, :read], patches, tokens[:, end:]], dim=1)


def num_kept(rate: float, patches: int) -> int:
    """Return ceil(rate P), at least 1."""
    return max(1, math.ceil(rate * patches - ROUNDING))


def highest(scores: Tensor, count: int) -> Tensor:
    """Return where the highest of each row (B, P) are, (B, count), in order; ties go first."""
    order = scores.detach().argsort(dim=1, descending=True, stable=True)
    return order[:, :count].sort(dim=1).values


def over_all(mask: Tensor, places: Tensor, patches: int) -> Tensor:
    """Return a mask (B, P) of all patches from that of some (B, K) at `places`; others have 0."""
    return mask.new_zeros(len(mask), patches).scatter(1, places, mask)
