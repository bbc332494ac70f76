"""An auxiliary classifier: what a client has in the place of the tail, to learn without it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from fl_split.models.beside import Beside, Trace
from fl_split.models.cut import Tail
from fl_split.models.mixture import balance_loss, watching
from fl_split.models.parts import EXITS_ALONE, Parts
from fl_split.models.stages import ConvMiddle, ConvTail
from fl_split.seeds import seeded

Size = Annotated[int, Field(ge=0)] | Literal["tail"]
"""Stages of the tail that an auxiliary has before its classifier; "tail" is the whole tail."""


class Auxiliary(Beside):
    """A tail of the client's own, for what crosses the cut.

    Parameters
    ----------
    tail : Tail
        What makes logits (B, C) of tokens (B, N, D).
    tokens : int
        N.
    """

    def __init__(self, tail: Tail, tokens: int) -> None:
        super().__init__()
        self.tail, self.tokens = tail, tokens

    def counts(self, trained: Parts) -> bool:
        """Tell that it does, unless exits learn alone: it stands for the server."""
        return trained != EXITS_ALONE

    def loss(self, trace: Trace, of_logits: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the loss of one batch, with the balance loss of experts if there are some."""
        assert trace.sent is not None
        if trace.sent.requires_grad:  # sums in the head must not depend on strides
            trace.sent.register_hook(torch.Tensor.contiguous)
        with watching() as routings:
            found = of_logits(self.logits(trace.sent))
        return found + balance_loss(routings) if routings else found

    def logits(self, tokens: Tensor) -> Tensor:
        """Return logits (B, C) for tokens (B, N, D)."""
        found: Tensor = self.tail(tokens)
        return found

    def flops(self, samples: int) -> int:
        """Operations of forward and backward on so many images."""
        return samples * self.tail.row_flops(self.tokens)[1]

    def forward_flops(self, samples: int) -> int:
        """Operations of the forward alone."""
        return samples * self.tail.row_flops(self.tokens)[0]

    def activation_bytes(self, samples: int) -> int:
        """Estimate what autograd keeps of so many images, in bytes."""
        return self.tail.activation_bytes(samples, self.tokens)


class Guide(Auxiliary):
    """An auxiliary that its client does not train: it is sent what others have fitted.

    Its weights are frozen, so that they are none of the head's, and heads of all clients share
    them: those that every run starts from. What a client has been sent takes their place
    (:meth:`holding`).

    Parameters
    ----------
    tail, tokens : Tail, int
        As of an auxiliary; the tail's weights are frozen.
    """

    def __init__(self, tail: Tail, tokens: int) -> None:
        self.shapes = {name: p.shape for name, p in tail.named_parameters() if p.requires_grad}
        for parameter in tail.parameters():
            parameter.requires_grad_(False)
        super().__init__(_counted_again(tail), tokens)
        self.own: dict[str, Tensor] = {}

    @property
    def size(self) -> int:
        """Weights P that are fitted."""
        return sum(shape.numel() for shape in self.shapes.values())

    def logits(self, tokens: Tensor) -> Tensor:
        """Return logits (B, C) for tokens (B, N, D), by the weights that it holds."""
        if not self.own:
            return super().logits(tokens)
        found: Tensor = functional_call(self.tail, self.own, (tokens,))
        return found

    def holding(self, vector: Tensor) -> Guide:
        """Return the same with weights (P,) of its own.

        Raises
        ------
        ValueError
            There are more or fewer than P.
        """
        if vector.shape != (self.size,):
            shape = tuple(vector.shape)
            raise ValueError(f"an auxiliary of shape {shape}, expected {(self.size,)}")
        parts = vector.split([shape.numel() for shape in self.shapes.values()])
        found = copy.copy(self)
        found.own = {
            name: part.view(shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }
        return found

    def to_fit(self) -> Tail:
        """Return a copy to be trained, in evaluation mode: gradients are fitted without dropout."""
        parameters = dict(self.tail.named_parameters())
        shared = [parameter for name, parameter in parameters.items() if name not in self.shapes]
        found = copy.deepcopy(self.tail, {id(one): one for one in shared})
        for name, parameter in found.named_parameters():
            parameter.requires_grad_(name in self.shapes)
        return found.eval()


def _counted_again(tail: Tail) -> Tail:
    """Return `tail`, whose operations are those of its present weights, frozen or not."""
    tail.__dict__.pop("_row_flops", None)
    if not isinstance(tail, ConvTail):
        return tail
    found = ConvTail(dict(tail.stages.named_children()), tail.shape)
    found.decoder = tail.decoder
    return found


class Pool(nn.Module):
    """The mean over positions."""

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C) for feature maps (B, C, H, W) or vectors (B, C)."""
        return features.flatten(2).mean(dim=2) if features.dim() > 2 else features


def shortened(tail: Tail, size: Size, seed: int) -> Tail:
    """Return a tail of the first stages of `tail`, whose weights it shares, and a classifier.

    Transformers keep their final norm and classifier. Of other models the mean over positions
    goes into a linear classifier that is drawn from `seed`.

    Raises
    ------
    ValueError
        The stages of `tail` are not known.
    """
    if size == "tail" or (size and size >= tail.num_stages):
        return tail
    if isinstance(tail, ConvTail):
        stages = dict([*tail.stages.named_children()][:size])
        width, *_ = ConvMiddle(stages, tail.shape).features
        with seeded(seed, "auxiliary"):
            stages["classifier"] = nn.Sequential(Pool(), nn.Linear(width, tail.num_classes))
        found: Tail = ConvTail(stages, tail.shape)
        found.decoder = tail.decoder
        return found
    if not isinstance(blocks := getattr(tail, "blocks", None), nn.ModuleList):
        raise ValueError(
            f"{type(tail).__name__} has no blocks to make an auxiliary of; take auxiliary='tail'"
        )
    found = copy.copy(tail)
    found._modules = {**tail._modules, "blocks": blocks[:size], "beside": nn.ModuleList()}
    found.__dict__.pop("_row_flops", None)
    return found
