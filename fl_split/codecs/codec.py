"""The contract of a codec: ``decode(encode(smashed))`` is what the tail trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from fl_split.payload import Payload
from fl_split.ragged import with_padding, without_padding


class Mixed(NamedTuple):
    """What labels are mixed with: another label of each sample (B,), and the share of its own."""

    labels: Tensor
    share: float


@dataclass(frozen=True)
class Smashed:
    """What the head gives a codec for one batch.

    Attributes
    ----------
    tokens : Tensor
        (B, N, D), with gradient; token 0 is CLS, in a model that has it.
    attention : Callable
        Called, gives the CLS attention row (B, N) of the last head block, without gradient;
        only for codecs that say `needs_attention`.
    labels : Tensor
        (B,) int64 classes.
    num_classes : int
        How many classes there are in the experiment.
    num_read : int
        Tokens that the classifier reads, the first ones, to be kept: CLS, in a DeiT with two
        classifiers the distillation token too.
    mixed : Mixed, optional
        What labels are mixed with; it travels beside what a codec makes of the rest.
    counts : Tensor, optional
        (B,) int64 tokens of each sample, where these are not N of all; zeros follow them.
    """

    tokens: Tensor
    attention: Callable[[], Tensor]
    labels: Tensor
    num_classes: int
    num_read: int = 1
    mixed: Mixed | None = None
    counts: Tensor | None = None


@dataclass(frozen=True)
class Received:
    """What the server trains on: K rows, K = B unless the codec merges samples.

    Attributes
    ----------
    tokens : Tensor
        (K, T, D), differentiable in the payload's values; those that are read come first.
    targets : Tensor
        (K,) int64 classes, or (K, C) float mixtures that sum to 1.
    weights : Tensor or None
        (K,) float loss weights of the rows; None is the plain mean.
    counts : Tensor or None
        (K,) int64 tokens of each row, where these are not T of all; zeros follow them.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor | None = None
    counts: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """Tokens (K,) of each row, padding left out."""
        if self.counts is not None:
            return self.counts
        rows, tokens, _ = self.tokens.shape
        return torch.full((rows,), tokens, device=self.tokens.device)

    def to(self, device: torch.device) -> Received:
        """Return the same with all tensors on `device`; those that are there stay."""
        found = (self.tokens, self.targets, self.weights, self.counts)
        tokens, targets, weights, counts = (one if one is None else one.to(device) for one in found)
        assert tokens is not None and targets is not None
        return Received(tokens, targets, weights, counts)


def most_attended(attention: Tensor, count: int, num_read: int) -> Tensor:
    """Indices (B, count) of the first `num_read` tokens, then of others by falling attention."""
    first = torch.arange(num_read, device=attention.device).expand(len(attention), -1)
    best = attention[:, num_read:].topk(count - num_read, dim=1).indices + num_read
    return torch.cat([first, best], dim=1)


def nearest_to_zero(low: Tensor, step: Tensor, top: Tensor | int) -> Tensor:
    """Return which level of a grid, low + step * 0 ... low + step * top, is nearest to zero."""
    level = torch.where(step > 0, -low / step, torch.zeros_like(low)).round()
    return level.clamp(min=0).minimum(torch.as_tensor(top, dtype=level.dtype, device=level.device))


Ratio = Annotated[float, Field(gt=0, le=1)]
"""Share of something that is sent."""


class Codec:
    """What crosses the cut, in two halves; a frozen dataclass whose ``repr`` is its spec.

    *Encode* and *decode* carry the gradient, by autograd, through ``Payload.carried`` on both
    sides: a codec needs no gradient code of its own. *Pack* and *unpack* turn a payload
    into what is sent and back, without gradient: the server takes the cut gradient at the
    unpacked values, the client applies it at its own (straight-through).

    What comes out lies on the device of what goes in; drawn on the CPU, it is moved there.

    A codec that only packs can follow another one (see :class:`Chain`) and can serve cut
    gradients. Decoding and unpacking may use what was sent and the codec's own fields only.
    """

    error_feedback: bool = False
    """Add what packing left out to the client's next cut gradient of the round, as `downlink`."""

    in_place: ClassVar[bool] = True
    """The values of all samples stand for the same places, whatever the samples are."""

    draws_size: ClassVar[bool] = False
    """In training the size of a payload is drawn, for each step anew."""

    keeps_samples: ClassVar[bool] = True
    """Row k of what is decoded is sample k, so that its label may be mixed with another one."""

    remembers: ClassVar[bool] = False
    """What is sent depends on what both sides remember of the client's earlier payloads."""

    needs_attention: ClassVar[bool] = False
    """Works only for models with a CLS token, whose attention it asks for."""

    @property
    def carries_counts(self) -> bool:
        """Whether samples may have `counts` of tokens; one that encodes otherwise says so."""
        return type(self).encode is Codec.encode

    @property
    def exposed(self) -> Sequence[str] | None:
        """What of the packed payload may come with wrong numbers, and can be unpacked all the same.

        The carried tensors, and the side tensors whose names begin with one of these. None if all
        must arrive as it was sent, as behind an entropy coder. A codec that packs says so itself;
        of one that only encodes the carried tensors are exposed.
        """
        return () if self._packs_nothing else None

    @property
    def analog(self) -> bool:
        """Whether the carried tensors are sent as fp32 numbers, so that noise may be added."""
        return self._packs_nothing

    @property
    def _packs_nothing(self) -> bool:
        return type(self).pack is Codec.pack

    up: ClassVar[str] = "tokens (B, N, D) in fp32; labels"
    down: ClassVar[str] = "a gradient for every number that went up"

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Compress one batch; every random choice comes from `generator`."""
        tokens, side = without_padding(smashed.tokens, smashed.counts)
        return Payload({"tokens": tokens}, {"labels": smashed.labels, **side})

    def decode(self, payload: Payload) -> Received:
        """Rebuild tokens and targets; raise ValueError if that cannot be done."""
        tokens, counts = with_padding(payload.carried["tokens"], payload.side)
        return Received(tokens, payload.side["labels"].long(), counts=counts)

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Return what is sent of `payload`; every random choice comes from `generator`."""
        return payload

    def unpack(self, packed: Payload) -> Payload:
        """Return the payload as the receiver of `packed` knows it."""
        return packed

    def omit(self, payload: Payload, samples: Tensor, memory: dict[str, Tensor]) -> Payload:
        """Client, before packing: leave out what the server has of earlier payloads.

        `samples` (B,) says which of the client's the rows are. `memory` is all that the client
        remembers, also of its exchange, from payload to payload; what this codec puts in goes by
        names of its own. Without gradient, as packing. Asked of codecs that say `remembers`.
        """
        return payload

    def complete(self, payload: Payload, memory: dict[str, Tensor]) -> Payload:
        """Server, after unpacking: put in what :meth:`omit` left out, and remember what came.

        `memory` is what the server remembers of the client. Raises ValueError if it does not
        have what is missing.
        """
        return payload

    def fill(self, packed: Payload, name: str) -> Tensor | float:
        """Return what takes the place of lost numbers of an exposed tensor, to be broadcast."""
        return 0.0

    def value_of(self, name: str) -> str:
        """Return the value that an exposed tensor becomes, number by number; itself if none."""
        return name

    def for_gradients(self) -> Codec:
        """Return what packs cut gradients; raise ValueError if there is no such thing."""
        if not only_packs(self):
            raise ValueError(
                f"{type(self).__name__} encodes smashed data; a cut gradient has the shape of "
                "what went up, and can only be packed, as by uniform(bits=8) or topk(ratio=0.1)"
            )
        return self

    def nominal_ratio(self, batch: float, numbers: int) -> float | None:
        """Share of B samples of N * D numbers that the ADC paper counts as sent, if it has it."""
        return None

    def modules(self, width: int) -> tuple[nn.Module, nn.Module] | None:
        """Trainable encoder (D to any width) and decoder (back to D), if the codec has them."""
        return None


def only_packs(codec: Codec) -> bool:
    """Tell whether `codec` may follow another one, and serve cut gradients."""
    kind = type(codec)
    return kind.encode is Codec.encode and kind.modules is Codec.modules
