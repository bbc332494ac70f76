"""The contract of exits: classifiers after head blocks, which answer without the server."""

from __future__ import annotations

import copy
import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from fl_split.models import linear_flops as flops
from fl_split.models.beside import Beside, Trace
from fl_split.models.cut import Head

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@runtime_checkable
class Exiting(Protocol):
    """What the key `exits` describes."""

    def build(self, head: Head, num_classes: int) -> Exits | None:
        """Return exits for `head`, weights drawn from the global generator; None for no exits.

        Raises
        ------
        ValueError
            The head has no such blocks.
        """
        ...


class Exits(Beside):
    """Classifiers after some stages of a head, each with a norm before it.

    Of a ViT they read CLS, of feature maps the mean over positions. The local loss is the sum
    of their losses times `weight`.

    Parameters
    ----------
    after : sequence of int
        Numbers of the stages, from 1, that have an exit behind them.
    weight : float
        Weight of each exit's loss; that of the server's has weight 1.
    detach : bool
        Let no gradient of an exit go into the trunk.

    Attributes
    ----------
    widths : list[int]
        D at each exit.
    norms, classifiers : nn.ModuleList
        One for each exit: layer norm over (D,), linear layer to (C,).
    """

    learns_alone = True

    def __init__(
        self,
        head: Head,
        after: Sequence[int],
        num_classes: int,
        weight: float,
        detach: bool,
    ) -> None:
        super().__init__()
        self.after, self.weight, self.detach = tuple(after), weight, detach
        self.reads_first = head.has_attention  # CLS
        widths = [shape[-1] for shape in hidden_shapes(head)]
        self.widths = [widths[number - 1] for number in after]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.widths)
        self.classifiers = nn.ModuleList(nn.Linear(width, num_classes) for width in self.widths)

    def reach(self, blocks: int) -> int:
        """Return how many of the head's blocks its gradient goes back through."""
        return 0 if self.detach else max(self.after)

    @property
    def names(self) -> list[str]:
        """Of exits, in order: `exit1` is behind the first stage."""
        return [f"exit{number}" for number in self.after]

    def features(self, trace: Trace) -> list[Tensor]:
        """Return what each exit's classifier reads, (B, D)."""
        found = []
        for number, norm in zip(self.after, self.norms, strict=True):
            tokens = trace.hidden[number - 1].float()
            if self.detach:
                tokens = tokens.detach()
            found.append(norm(tokens[:, 0] if self.reads_first else tokens.mean(dim=1)))
        return found

    @abstractmethod
    def logits(self, trace: Trace) -> list[Tensor]:
        """Return logits (B, C) of each exit; softmax of them are its probabilities."""

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


def exits_of(head: Head) -> Exits | None:
    """Return the exits of `head`, if it has some."""
    return next((part for part in head.beside if isinstance(part, Exits)), None)


@torch.no_grad()
def hidden_shapes(head: Head) -> list[tuple[int, ...]]:
    """Return the shape (N, D) of the tokens after each stage of `head`."""
    trace = Trace()
    copy.deepcopy(head).eval()(torch.zeros(1, *head.image_shape, device="cpu"), trace)
    return [tuple(hidden.shape[1:]) for hidden in trace.hidden]


def stages_with_exit(after: int | str, head: Head) -> list[int]:
    """Read which stages have an exit: ``all``, or their numbers from 1 with commas between.

    Raises
    ------
    ValueError
        The text is neither, a number comes twice or is behind the cut.
    """
    count, after = head.num_stages, str(after)
    if after == "all":
        return [*range(1, count + 1)]
    words = [word.strip() for word in after.split(",")]
    if not all(word.isdecimal() for word in words):
        raise ValueError(
            f"after must be 'all' or numbers of head blocks with commas between, got {after!r}"
        )
    numbers = [int(word) for word in words]
    if wrong := [number for number in numbers if not 1 <= number <= count]:
        raise ValueError(f"after: the head has blocks 1..{count} before the cut, got {wrong[0]}")
    if any(a >= b for a, b in itertools.pairwise(numbers)):
        raise ValueError(
            f"after must name blocks in rising order, each once, as '1, 2', got {after!r}"
        )
    return numbers
