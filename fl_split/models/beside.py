"""Parts beside the trunk of a half, with a loss of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from fl_split.models.parts import Part, Parts


@dataclass
class Trace:
    """What a forward pass of a half leaves behind, for the parts beside it; of a tail `hidden`.

    Attributes
    ----------
    hidden : list[Tensor]
        Tokens (B, N, D) after each stage; a feature map has its positions as tokens.
    masks : list[Tensor]
        What selectors of tokens say of patches (B, N), one for each place where they choose.
    rate : float or Tensor
        Share of the patches that a selector was asked to keep, of each image (B,) if so.
    kept : Tensor or int
        How many patches it has kept, of each image (B,) or of all alike.
    went_on : Tensor, optional
        Which patches (B, P) these are.
    counts : Tensor, optional
        Tokens (B,) of each image that cross the cut, where these are not as many of all.
    sent : Tensor, optional
        Tokens (B, N, D) that cross the cut, before a codec.
    """

    hidden: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    rate: float | Tensor = 1.0
    kept: Tensor | int = 0
    went_on: Tensor | None = None
    counts: Tensor | None = None
    sent: Tensor | None = None


class Beside(nn.Module, ABC):
    """A part of a half beside its stages; its weights travel with those of the half, or stay.

    The loss of a head's part needs no server. Of a tail, exits alone are such parts.

    Attributes
    ----------
    part : str
        Which part of a model its weights are, where phases train parts.
    learns_alone : bool
        Whether it answers labels by itself, as an exit does: then it teaches a head also where
        the server says nothing.
    is_private : bool
        Whether its weights stay with each client, neither sent nor averaged.
    """

    part: ClassVar[Part] = "head"
    learns_alone: ClassVar[bool] = False
    is_private: bool = False

    def counts(self, trained: Parts) -> bool:
        """Tell whether its loss counts where `trained` learn: where it does itself."""
        return self.part in trained

    def reach(self, blocks: int) -> int:
        """Return how many of the head's blocks its gradient goes back through."""
        return blocks

    @abstractmethod
    def loss(self, trace: Trace, of_logits: Callable[[Tensor], Tensor]) -> Tensor:
        """Return a loss of one batch, that is added to the one which the server minimises.

        `of_logits` gives the loss of logits (B, C), against the labels of the batch.
        """

    @abstractmethod
    def flops(self, samples: int) -> int:
        """Operations of forward and backward on so many images."""

    @abstractmethod
    def forward_flops(self, samples: int) -> int:
        """Operations of the forward alone."""

    def activation_bytes(self, samples: int) -> int:
        """Estimate what autograd keeps of so many images, in bytes; 0 is no estimate."""
        del samples
        return 0
