"""The contract of exits: classifiers after blocks, which answer before the last one does."""

from __future__ import annotations

import copy
import itertools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol, Self, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from fl_split.models import linear_flops as flops
from fl_split.models.beside import Beside, Trace
from fl_split.models.cut import Head, Tail

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@runtime_checkable
class Exiting(Protocol):
    """What the key `exits` describes."""

    def build(self, head: Head, tail: Tail, num_classes: int) -> tuple[Exits | None, Exits | None]:
        """Return exits of head and tail, weights drawn from the global generator; None for none.

        Raises
        ------
        ValueError
            The halves have no such blocks.
        """
        ...


@dataclass(frozen=True)
class Place:
    """Where in a half exits are.

    Attributes
    ----------
    after : tuple[int, ...]
        Numbers of the stages, from 1 at the image, that have an exit behind them.
    first : int
        Stages of the model before this half.
    widths : list[int]
        D at each exit.
    reads_first : bool
        Whether there is a CLS token.
    """

    after: tuple[int, ...]
    first: int
    widths: list[int]
    reads_first: bool


class Exits(Beside):
    """Classifiers after some stages of a half, each with a norm before it.

    Of a ViT they read CLS, of feature maps the mean over positions. Their loss is the sum of the
    losses of all times `weight`.

    Parameters
    ----------
    place : Place
        Where they are.
    weight : float
        Weight of each exit's loss; that of the last classifier has weight 1.
    detach : bool
        Let no gradient of an exit go into the trunk.
    private : bool
        Leave their weights with each client.

    Attributes
    ----------
    norms, classifiers : nn.ModuleList
        One for each exit: layer norm over (D,), linear layer to (C,).
    """

    part = "exits"
    learns_alone = True

    def __init__(
        self, place: Place, num_classes: int, weight: float, detach: bool, private: bool = False
    ) -> None:
        super().__init__()
        self.is_private = private
        self.after, self.first, self.widths = place.after, place.first, place.widths
        self.reads_first, self.weight, self.detach = place.reads_first, weight, detach
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.widths)
        self.classifiers = nn.ModuleList(nn.Linear(width, num_classes) for width in self.widths)

    def reach(self, blocks: int) -> int:
        """Return how many of the head's blocks its gradient goes back through."""
        return 0 if self.detach else min(blocks, max(self.after))

    @property
    def names(self) -> list[str]:
        """Of exits, in order: `exit1` is behind the first stage."""
        return [f"exit{number}" for number in self.after]

    def features(self, trace: Trace) -> list[Tensor]:
        """Return what each exit's classifier reads, (B, D)."""
        found = []
        for number, norm in zip(self.after, self.norms, strict=True):
            tokens = trace.hidden[number - self.first - 1].float()
            if self.detach:
                tokens = tokens.detach()
            found.append(norm(tokens[:, 0] if self.reads_first else tokens.mean(dim=1)))
        return found

    @abstractmethod
    def logits(self, trace: Trace) -> list[Tensor]:
        """Return logits (B, C) of each exit; softmax of them are its probabilities."""

    def with_tail(self, tail: Tail, tokens: Tensor) -> Tensor:
        """Return logits (B, 1 + E, C) of `tail` and of these exits of it, for tokens (B, T, D)."""
        trace = Trace()
        logits = tail(tokens, trace)
        return torch.stack([logits.float(), *[one.float() for one in self.logits(trace)]], dim=1)

    def with_weights(self, vector: Tensor) -> Self:
        """Return such exits with all weights from `vector`, in the order of ``parameters()``."""
        found = copy.deepcopy(self)
        into = [*found.parameters()]
        nn.utils.vector_to_parameters(vector.to(into[0].device, copy=True), into)
        return found

    def from_stage(self, first: int) -> Self:
        """Return these exits, with the same weights, of a half that begins after `first` stages."""
        found = copy.copy(self)
        found.first = first
        return found

    def loss(self, trace: Trace, of_logits: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the weighted sum of all exits' losses."""
        losses = [of_logits(logits) for logits in self.logits(trace)]
        return self.weight * torch.stack(losses).sum()

    def forward_flops_of(self, count: int) -> int:
        """Operations of the forward of the first `count` exits, on one image."""
        return sum(flops.forward(layer) for layer in self.classifiers[:count])

    def flops(self, samples: int) -> int:
        """Operations of forward and backward; one token of an image is read.

        Detached ones need the gradient of their inputs too: for the weights of the norms.
        """
        return samples * flops.training(self)

    def forward_flops(self, samples: int) -> int:
        """Operations of the forward alone."""
        return samples * flops.forward(self)


def exits_of(half: Head | Tail) -> Exits | None:
    """Return the exits of `half`, if it has some."""
    return next((part for part in half.beside if isinstance(part, Exits)), None)


def places_of_exits(
    after: int | str, head: Head, tail: Tail, private: bool = False
) -> tuple[Place | None, Place | None]:
    """Return where exits are in the head and behind the cut, see :func:`stages_with_exit`.

    Raises
    ------
    ValueError
        As told there; or some are behind the cut, and all shall stay with the clients.
    """
    numbers, cut = stages_with_exit(after, head, tail), head.num_stages
    before = tuple(number for number in numbers if number <= cut)
    behind = tuple(number for number in numbers if number > cut)
    if private and behind:
        raise ValueError(
            f"private: exits of clients are behind blocks 1..{cut} of the head, got {behind[0]}, "
            "whose exit is the server's; leave it out of after, or private at False"
        )
    pixels = torch.zeros(1, *head.image_shape, device="cpu")
    tokens = torch.zeros(1, tail.num_tokens or head.smashed_shape[0], tail.width, device="cpu")
    return _place(head, pixels, before, 0, head), _place(tail, tokens, behind, cut, head)


@torch.no_grad()
def _place(
    half: Head | Tail, sample: Tensor, after: tuple[int, ...], first: int, head: Head
) -> Place | None:
    """Run a sample through `half` for the widths."""
    if not after:
        return None
    trace = Trace()
    copy.deepcopy(half).eval()(sample, trace)
    widths = [trace.hidden[number - first - 1].shape[-1] for number in after]
    return Place(after, first, widths, head.has_attention)


def stages_with_exit(after: int | str, head: Head, tail: Tail) -> list[int]:
    """Read which stages have an exit: ``all`` of the head, or numbers with commas between.

    The first stage is 1, and the first behind the cut has the next number after the head's last.

    Raises
    ------
    ValueError
        The text is neither, a number comes twice or is none of such a stage.
    """
    cut, after = head.num_stages, str(after)
    if after == "all":
        return [*range(1, cut + 1)]
    words = [word.strip() for word in after.split(",")]
    if not all(word.isdecimal() for word in words):
        raise ValueError(
            "after must be 'all' or numbers of blocks with commas between, as '1, 3', got "
            f"{after!r}"
        )
    numbers = [int(word) for word in words]
    last = cut + tail.num_stages - 1 if head.end is None else cut
    if wrong := [number for number in numbers if not 1 <= number <= last]:
        why = "; behind the last one is the model's own classifier"
        if head.end is not None:
            why = "; the server of a U-shape has no labels to train exits"
        what = f"after: exits may be behind blocks 1..{last}, got {wrong[0]}"
        raise ValueError(what + why * (wrong[0] > 0))
    if any(a >= b for a, b in itertools.pairwise(numbers)):
        raise ValueError(
            f"after must name blocks in rising order, each once, as '1, 2', got {after!r}"
        )
    return numbers
