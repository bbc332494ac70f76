"""One codec after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_split.codecs.codec import Codec, Received, Smashed, only_packs
from fl_split.payload import Payload


def _of_first(name: str) -> property:
    """Make what a chain has of its first stage."""
    return property(lambda chain: getattr(chain.stages[0], name), doc="That of the first codec.")


@dataclass(frozen=True)
class Chain(Codec):
    """One codec after the other: the first encodes, all of them pack.

    Raises
    ------
    ValueError
        A codec that does not only pack stands behind another one, one that remembers samples
        behind one that mixes or packs them, or one stands there twice.
    """

    stages: tuple[Codec, ...]

    def __post_init__(self) -> None:
        for stage in self.stages[1:]:
            if not only_packs(stage):
                raise ValueError(f"{type(stage).__name__} encodes, so it can only come first")
        before = self.stages[0]
        for place, stage in enumerate(self.stages[1:], start=1):
            keeps = before.keeps_samples and before.in_place and type(before).pack is Codec.pack
            if stage.remembers and not (place == 1 and keeps):
                raise ValueError(
                    f"{type(stage).__name__} compares samples number by number; it comes first, or "
                    "right behind a codec that sends of every sample the same numbers, unpacked, "
                    "as lightsplit or bottlenet"
                )
        if len({type(stage) for stage in self.stages}) < len(self.stages):
            raise ValueError("a codec can come only once")

    draws_size = _of_first("draws_size")
    error_feedback = _of_first("error_feedback")
    in_place = _of_first("in_place")
    keeps_samples = _of_first("keeps_samples")
    needs_attention = _of_first("needs_attention")

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Whether a stage does."""
        return any(stage.remembers for stage in self.stages)

    @property
    def carries_counts(self) -> bool:
        """Whether the first stage carries them, and none remembers samples."""
        return self.stages[0].carries_counts and not self.remembers

    @property
    def exposed(self) -> Sequence[str] | None:
        """What the stages expose; nothing if one of them exposes nothing."""
        found: list[str] = []
        for stage in self.stages:
            if stage.exposed is None:
                return None
            found += stage.exposed
        return found

    @property
    def analog(self) -> bool:
        """Whether all stages are."""
        return all(stage.analog for stage in self.stages)

    def fill(self, packed: Payload, name: str) -> Tensor | float:
        """Ask the stage that the tensor is of."""
        stages = (one for one in self.stages if name.startswith(tuple(one.exposed or ())))
        return next(stages, self.stages[0]).fill(packed, name)

    def value_of(self, name: str) -> str:
        """Ask the stages, the last one first."""
        for stage in reversed(self.stages):
            name = stage.value_of(name)
        return name

    def for_gradients(self) -> Codec:
        """Let the first serve gradients, if it can."""
        return Chain((self.stages[0].for_gradients(), *self.stages[1:]))

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.stages))

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Encode by the first codec."""
        return self.stages[0].encode(smashed, generator)

    def decode(self, payload: Payload) -> Received:
        """Decode by the first codec."""
        return self.stages[0].decode(payload)

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Pack by one after the other."""
        for stage in self.stages:
            payload = stage.pack(payload, generator)
        return payload

    def unpack(self, packed: Payload) -> Payload:
        """Unpack, the last one first."""
        for stage in reversed(self.stages):
            packed = stage.unpack(packed)
        return packed

    def omit(self, payload: Payload, samples: Tensor, memory: dict[str, Tensor]) -> Payload:
        """Ask the stage that remembers."""
        for stage in self.stages:
            payload = stage.omit(payload, samples, memory)
        return payload

    def complete(self, payload: Payload, memory: dict[str, Tensor]) -> Payload:
        """Ask the stage that remembers."""
        for stage in reversed(self.stages):
            payload = stage.complete(payload, memory)
        return payload

    def modules(self, width: int) -> tuple[nn.Module, nn.Module] | None:
        """Return those of the first codec."""
        return self.stages[0].modules(width)
