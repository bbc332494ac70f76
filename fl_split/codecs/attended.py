"""Attended: ADC's choice of tokens without ADC's mixtures. Our own, for many small clients."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs.codec import Codec, Ratio, Smashed, most_attended
from fl_split.payload import Payload
from fl_split.ragged import assembled, by_count, without_padding
from fl_split.specs import STRICT


@dataclass(frozen=True, config=STRICT)
class Attended(Codec):
    """Keep every sample and its label, but only its most attended tokens and one of the rest.

    ADC merges samples, which in a small, skewed batch makes mixtures that say little. Here
    each sample keeps CLS and its most attended tokens; all others become one token, their
    mean weighted by attention. Made to be followed by ``uniform(bits=4)``, which pays for
    the samples that are not merged.

    Parameters
    ----------
    ratio : float
        Share of the tokens that is sent: T = max(2, floor(ratio N)), or at least 3 if the
        classifier of a DeiT reads the distillation token, which is then kept as CLS is.
    rest : bool
        Send the mean of the other tokens as one of the T.
    """

    ratio: Ratio = 0.4
    rest: bool = True

    in_place: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = True
    carries_counts: ClassVar = True
    up: ClassVar[str] = "T tokens per sample in fp32; labels"
    down: ClassVar[str] = "a gradient for every number that went up"

    def num_tokens(self, available: int, num_read: int = 1) -> int:
        """Return T for samples of `available` tokens."""
        return min(available, max(num_read + 1, math.floor(self.ratio * available)))

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Send tokens (B, T, D) and labels (B,); T is of each sample, if their counts are."""
        attention, counts = smashed.attention(), smashed.counts
        if counts is None:
            tokens = self._chosen(smashed.tokens, attention, smashed.num_read)
            return Payload({"tokens": tokens}, {"labels": smashed.labels})
        rows = by_count(counts)
        parts = [
            self._chosen(smashed.tokens[k, :count], attention[k, :count], smashed.num_read)
            for count, k in rows.items()
        ]
        sizes = {count: part.shape[1] for count, part in zip(rows, parts, strict=True)}
        left = torch.tensor([sizes[count] for count in counts.tolist()], device=counts.device)
        tokens, side = without_padding(assembled(parts, [*rows.values()]), left)
        return Payload({"tokens": tokens}, {"labels": smashed.labels, **side})

    def _chosen(self, tokens: Tensor, attention: Tensor, num_read: int) -> Tensor:
        """Choose among tokens (B, N, D) by attention (B, N); return (B, T, D)."""
        count = self.num_tokens(attention.shape[1], num_read)
        if count == attention.shape[1]:
            return tokens
        kept = most_attended(attention, count - self.rest, num_read)
        chosen = _take(tokens, kept)
        if not self.rest:
            return chosen
        weights = attention.scatter(1, kept, 0.0)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)
        return torch.cat([chosen, weights[:, None] @ tokens], dim=1)


def _take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens (B, T, D) of (B, N, D) at indices (B, T)."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))
