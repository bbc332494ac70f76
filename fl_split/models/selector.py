"""Which patches of an image go on, after one of the blocks of a head: the contract."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from fl_split.models.beside import Trace
from fl_split.ragged import assembled, by_count

ROUNDING = 1e-9
"""What a rate times a number of patches may be above a whole number, as 0.7 * 10 is above 7."""


Blocks = nn.ModuleList | Sequence[nn.Module]


LEAST = 1e-3
"""Of a mask, for its patch to go on by threshold; as in the code of 2505.17604."""


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

    def of(self, rows: Tensor | slice) -> Rating:
        """Return that of some images."""
        return Rating(self.scores[rows], None if self.mask is None else self.mask[rows])


class Passed(NamedTuple):
    """What images of one number of tokens became behind the choice.

    What the last block got and gave, which patches went on, the masks of all places, the tokens
    after each block.
    """

    before: Tensor
    tokens: Tensor
    went_on: Tensor
    masks: list[Tensor]
    hidden: list[Tensor]


class Selector(nn.Module, ABC):
    """Keeps the first `num_read` tokens and ceil(rate P) of the P patches of each image.

    Patches that do not go on are taken out of the sequence, so neither later blocks of the head
    nor the tail see them. Those that do stay in order. Where images keep different numbers, those
    of one number go on together (:mod:`fl_split.ragged`).

    Attributes
    ----------
    rate : float
        Share of the patches, in evaluation.
    after : int
        Number of the block behind which patches are chosen, from 1.
    draws_rate : bool
        Whether each training forward has another rate, drawn from (0, 1].
    draws_each : bool
        Whether it is drawn for each image, and not for the batch.
    by_threshold : bool
        Whether as many patches go on as have a mask above 0, at least one, instead of ceil(rate P).
    draws : bool
        Whether a training forward draws random numbers.
    num_extra : int
        Tokens that are in the sequence for the selector's own use; they come last, and do not
        cross the cut.
    """

    draws_rate: bool = False
    draws_each: bool = False
    by_threshold: bool = False
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

    @property
    def is_ragged(self) -> bool:
        """Whether images of one batch may keep different numbers of patches."""
        return self.by_threshold or (self.draws_each and self.training)

    @property
    def varies(self) -> bool:
        """Whether it is not known beforehand how many patches go on."""
        return self.by_threshold or self.draws_rate

    def chooses(self, number: int) -> bool:
        """Tell whether patches are rated after this block."""
        return number == self.after

    def extended(self, tokens: Tensor, rate: float | Tensor) -> Tensor:
        """Return the sequence (B, N, D) with the selector's own tokens at its end.

        A `rate` for each image is (B,).
        """
        del rate
        return tokens

    def counts(self, rating: Rating, rate: float | Tensor) -> Tensor | int:
        """Return how many patches (B,) of each image go on, or of all of them."""
        patches = rating.scores.shape[1]
        if self.by_threshold:
            assert rating.mask is not None
            return (rating.mask > LEAST).sum(dim=1).clamp(min=1)
        if isinstance(rate, float):
            return num_kept(rate, patches)
        kept = [num_kept(one, patches) for one in rate.double().tolist()]
        return torch.tensor(kept, device=rate.device)

    def forward(
        self, blocks: Blocks, tokens: Tensor, trace: Trace | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the blocks of a head on tokens (B, N, D), and let patches go on the way.

        Returns what the last block got and what it gave, both of the tokens that are left, and
        how many these are of each image, (B,), where that is not the same for all.
        """
        rate, hidden = self.present_rate(tokens), []
        tokens = before = self.extended(tokens, rate)
        for block in blocks[: self.after]:
            before, tokens = tokens, block(tokens)
            hidden.append(self._own(tokens))
        rating = self.rated(self.after, blocks[self.after - 1], before, tokens, None)
        counts, behind = self.counts(rating, rate), blocks[self.after :]
        all_rows = {counts: slice(None)} if isinstance(counts, int) else by_count(counts)
        rows: list[Any] = [*all_rows.values()]
        parts = [
            self._behind(behind, before[k], tokens[k], rating.of(k), count)
            for count, k in all_rows.items()
        ]
        left = None if isinstance(counts, int) else counts + self.sizes.num_read
        if trace is not None:
            trace.rate, trace.kept, trace.counts = rate, counts, left
            trace.went_on = assembled([p.went_on for p in parts], rows).bool()
            trace.masks = [
                assembled(one, rows) for one in zip(*(p.masks for p in parts), strict=True)
            ]
            later = [assembled(one, rows) for one in zip(*(p.hidden for p in parts), strict=True)]
            trace.hidden += [*hidden[:-1], *later]
        ends = ([p.before for p in parts], [p.tokens for p in parts])
        return assembled(ends[0], rows), assembled(ends[1], rows), left

    def _behind(
        self, blocks: Blocks, before: Tensor, tokens: Tensor, rating: Rating, count: int
    ) -> Passed:
        """Let `count` patches of each image go on, and run the blocks behind the choice."""
        scores, mask = rating
        patches, kept = scores.shape[1], highest(scores, count)
        before, tokens = self._left(before, kept), self._left(tokens, kept)
        went_on = over_all(torch.ones_like(kept), kept, patches)
        masks = [went_on if mask is None else mask]
        if mask is not None:
            mask = mask.gather(1, kept)
            tokens = self._scaled(tokens, mask)
        hidden = [self._own(tokens)]
        for number, block in enumerate(blocks, start=self.after + 1):
            before, tokens = tokens, block(tokens)
            if self.chooses(number):
                mask = self.rated(number, block, before, tokens, mask).mask
            if mask is not None and self.chooses(number):
                masks.append(over_all(mask, kept, patches))
                tokens = self._scaled(tokens, mask)
            hidden.append(self._own(tokens))
        return Passed(self._own(before), self._own(tokens), went_on, masks, hidden)

    def present_rate(self, tokens: Tensor) -> float | Tensor:
        """Return the rate of this forward on `tokens`, or one for each image (B,).

        Drawn ones are from torch's global generator.
        """
        if not (self.training and self.draws_rate):
            return self.rate
        if self.draws_each:
            return 1 - torch.rand(len(tokens), device="cpu").to(tokens.device)
        return 1 - float(torch.rand((), device="cpu"))

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
        found.rate, found.draws_rate, found.draws_each = rate, False, False
        return found

    def keeping(self, count: int, tokens: int) -> Self:
        """Return the same that keeps `count` patches of images of so many `tokens`."""
        found = self.with_rate(count / (tokens - self.sizes.num_read))
        found.by_threshold = False
        return found

    def courses(self, tokens: int) -> list[Course]:
        """Return what may become of `tokens`, each as likely as the others."""
        patches = tokens - self.sizes.num_read
        counts = range(1, patches + 1) if self.varies else [num_kept(self.rate, patches)]
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
