"""The two halves of a model cut after one of its stages: Head (client) and Tail (server).

Cut twice, in a U-shape, the last stages are the client's again: the head has an end, and the
tail is but the middle.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Self, cast

import torch
from torch import Tensor, nn

from fl_split.codecs import Codec
from fl_split.models.beside import Beside, Trace
from fl_split.models.parts import Part
from fl_split.models.selector import Course, Selector, num_kept
from fl_split.seeds import seeded


class Head(nn.Module, ABC):
    """The client's part: the first stages, and a codec's encoder.

    Attributes
    ----------
    part : str
        Which part of a model its own layers are, where phases train parts.
    smashed_shape : tuple[int, int]
        Tokens N and width D of the smashed data of one sample.
    image_shape : tuple[int, int, int]
        Channels, height and width of the images that come in.
    num_read : int
        Tokens that the classifier reads, the first ones; codecs that select tokens keep them.
    has_attention : bool
        Whether there is a CLS token whose attention codecs can ask for.
    has_dropout : bool
        Whether a training forward draws random numbers.
    selector : Selector or None
        Says which tokens go on, inside the head and over the cut; None is all.
    beside : nn.ModuleList
        Parts with a loss of their own, as exits; each is a :class:`~fl_split.models.beside.Beside`.
    end : Tail or None
        In a U-shape the last stages, which :meth:`forward` does not run through. Its weights
        are the head's last: they travel, are averaged and optimised with the others.
    """

    part: Part = "head"
    smashed_shape: tuple[int, int]
    image_shape: tuple[int, int, int]
    num_read: int = 1
    has_attention: bool = False
    has_dropout: bool = False
    encoder: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.selector: Selector | None
        self.register_module("selector", None)  # which keeps its place before the end
        self.beside = nn.ModuleList()
        self.end: Tail | None = None

    @property
    def can_stack(self) -> bool:
        """Whether heads of several clients can run as one, with stacked weights."""
        return False

    @property
    def parts_beside(self) -> list[Beside]:
        """What is in `beside`."""
        return _parts_beside(self.beside)

    @property
    def num_stages(self) -> int:
        """Blocks or stages before the cut."""
        return _num_stages(self)

    @property
    def learns_alone(self) -> bool:
        """Whether something beside it learns where the server says nothing."""
        return any(part.learns_alone for part in self.parts_beside)

    @property
    def courses(self) -> list[Course]:
        """What may become of the tokens of an image, each as likely; the last is the longest."""
        tokens = self.smashed_shape[0]
        if self.selector is not None:
            return self.selector.courses(tokens)
        return [Course([tokens] * len(getattr(self, "blocks", ())), tokens, tokens)]

    @property
    def most_sent(self) -> int:
        """Most tokens of an image that cross the cut."""
        return self.courses[-1].sent

    @property
    def smashed_bytes(self) -> int:
        """Bytes of the uncompressed fp32 smashed data of one sample."""
        return 4 * math.prod(self.smashed_shape)

    @property
    def output_bytes(self) -> int:
        """The same of the middle's output; 0 without one."""
        if self.end is None:
            return 0
        return 4 * (self.end.num_tokens or self.smashed_shape[0]) * self.end.width

    def with_rate(self, rate: float) -> Self:
        """Return a head that shares all weights with this one, and keeps another share of patches.

        Raises
        ------
        ValueError
            This head lets all tokens go on, or the rate is not in (0, 1].
        """
        if self.selector is None:
            raise ValueError(
                "this head lets all tokens go on, so it has no rate; see the key tokens"
            )
        return self._with(self.selector.with_rate(rate))

    def keeping(self, count: int) -> Self:
        """Return the same that keeps `count` patches of each image; for heads with a selector."""
        assert self.selector is not None
        return self._with(self.selector.keeping(count, self.smashed_shape[0]))

    def drawn_at(self, rate: float) -> Self:
        """Return this head, or where counts vary one that keeps this share of the patches."""
        patches = self.smashed_shape[0] - self.num_read
        return self.keeping(num_kept(rate, patches)) if self.varies else self

    def _with(self, selector: Selector) -> Self:
        found = copy.copy(self)
        found._modules = {**self._modules, "selector": selector}
        return found

    @property
    def varies(self) -> bool:
        """Whether it is not known beforehand how many tokens of an image go on."""
        return self.selector is not None and self.selector.varies

    @property
    def is_ragged(self) -> bool:
        """Whether images of one batch may have different numbers of tokens."""
        return self.selector is not None and self.selector.is_ragged

    @abstractmethod
    def forward(
        self, pixels: Tensor, trace: Trace | None = None
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """Return smashed tokens (B, N, D) and what gives the CLS attention (B, N).

        `pixels` is (B, C, H, W). See :meth:`attention`, which only some codecs ask for. A
        `trace` gets what the parts beside need, and how many tokens there are of each image; it
        is only given to heads of which one of both is asked.
        """

    @abstractmethod
    def flops(self, samples: int) -> int:
        """Operations of forward and backward on so many images, without the end."""

    @abstractmethod
    def forward_flops(self, samples: int) -> int:
        """Operations of the forward alone."""

    def activation_bytes(self, samples: int) -> int:
        """Estimate what autograd keeps of so many images, in bytes; 0 is no estimate."""
        del samples
        return 0

    def attention(self, before: Tensor) -> Tensor:
        """CLS attention row (B, N) of the last stage, given its input; without gradient."""
        raise ValueError("a model without CLS token has no CLS attention")


class Tail(nn.Module, ABC):
    """The server's part: a codec's decoder, the other stages; the end of a U-shape is one too.

    Attributes
    ----------
    part : str
        Which part of a model its own layers are; those of a stand-in are the head's.
    width : int
        Of the tokens that come in: D, or what the encoder makes of it.
    num_tokens : int, optional
        How many tokens of a sample must come in; None takes any number.
    num_classes : int
        Logits that come out, in a U-shape of the end.
    has_dropout : bool
        Whether a training forward draws random numbers.
    has_batch_norm : bool
        Whether samples that run through it together change each other's results.
    has_experts : bool
        Whether some of its blocks are mixtures of experts.
    beside : nn.ModuleList
        Exits behind the cut; the server trains them by a loss of their own.
    """

    part: Part = "tail"
    width: int
    num_tokens: int | None = None
    num_classes: int
    has_dropout: bool = False
    has_batch_norm: bool = False
    has_experts: bool = False
    decoder: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.beside = nn.ModuleList()

    @property
    def parts_beside(self) -> list[Beside]:
        """What is in `beside`."""
        return _parts_beside(self.beside)

    @property
    def num_stages(self) -> int:
        """Blocks or stages behind the cut; the last one ends in logits."""
        return _num_stages(self)

    @property
    def serves_alone(self) -> bool:
        """Whether batches of several clients must not run through it as one.

        A batch norm would normalise them together, experts give room to all of them together.
        """
        return self.has_batch_norm or self.has_experts

    @abstractmethod
    def forward(self, tokens: Tensor, trace: Trace | None = None) -> Tensor:
        """Return logits (B, C) for tokens (B, T, D); a middle returns tokens again.

        A `trace` gets what exits need; it is only given to tails that have some.
        """

    @abstractmethod
    def flops(self, rows: int, tokens: int) -> int:
        """Operations of forward and backward on `rows` sequences of `tokens` tokens.

        They are those without what is `beside`, as in a head.
        """

    @abstractmethod
    def forward_flops(self, rows: int, tokens: int) -> int:
        """Operations of the forward alone."""

    def activation_bytes(self, rows: int, tokens: int) -> int:
        """Estimate what autograd keeps of `rows` sequences, in bytes; 0 is no estimate."""
        del rows, tokens
        return 0

    def classifying_layers(self) -> list[nn.Module]:
        """Return the layer or layers that make logits: the last linear one, if it does."""
        *_, last = [None, *(one for one in self.modules() if isinstance(one, nn.Linear))]
        return [last] if last is not None and last.out_features == self.num_classes else []

    def row_flops(self, tokens: int) -> tuple[int, int]:
        """Operations on one sequence, forward alone and with backward.

        They are counted once for each number of tokens: walking a model takes long.
        """
        known: dict[int, tuple[int, int]] = self.__dict__.setdefault("_row_flops", {})
        if tokens not in known:
            known[tokens] = self.forward_flops(1, tokens), self.flops(1, tokens)
        return known[tokens]


def _parts_beside(found: nn.ModuleList) -> list[Beside]:
    return [cast(Beside, part) for part in found]


def _num_stages(half: nn.Module) -> int:
    return len(getattr(half, "blocks", None) or getattr(half, "stages", None) or [half])


def mean(numbers: Iterable[int]) -> int:
    """Return the mean of whole numbers, rounded down."""
    found = list(numbers)
    return sum(found) // len(found)


def insert(head: Head, tail: Tail, codec: Codec, seed: int) -> None:
    """Put the trainable modules of `codec`, if it has any, on both sides of the cut."""
    _, width = head.smashed_shape
    with seeded(seed, "codec modules"):
        found = codec.modules(width)
    if found is not None:
        head.encoder, tail.decoder = found
        tail.width = head.encoder(torch.zeros(1, width, device="cpu")).shape[-1]


def draws(module: nn.Module) -> bool:
    """Tell whether a training forward of `module` draws random numbers."""
    return any(
        (isinstance(part, nn.Dropout) and part.p > 0)
        or getattr(part, "attention_dropout", 0) > 0
        or getattr(part, "drop_prob", 0) > 0  # of whole residual branches
        for part in module.modules()
    )
