"""After SplitCom (Li et al., 2026, arXiv 2602.10564): a sample is sent again if it has moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs.codec import Codec
from fl_split.payload import Payload
from fl_split.specs import STRICT

SAMPLES, STAYS, SENT = "samples", "stays", "sent"
"""Side tensors (B,): numbers of the samples among the client's, and which of them stay; and (),
how many payloads the client has sent, with this one: a gap tells that one was lost."""


@dataclass(frozen=True, config=STRICT)
class SplitCom(Codec):
    """Send a sample's smashed data again only if they have moved since they were last sent.

    A sample stays, of which only its number, a flag and the label are sent, if
    ||z - z'|| < threshold ||z'||: z are all its values now, z' those that were last sent, both as
    they are before packing. The tail then gets what the server last received of the sample. The
    cut gradient is taken there, and comes down in full; the client applies it to its present
    values (straight-through, as of every codec that packs).

    Client and server remember the values of every sample that was sent, each in fp32: this is
    counted as memory, is in checkpoints, and lasts as long as the run. Augmentation that draws a
    new view of a sample each time moves it, so that it seldom stays. Both sides must agree on what
    came, so that nothing may be lost on the way, nor arrive with wrong numbers: after a gap, as by
    a timeout, the client is dropped in each round, by name.

    Reconstructed: of the paper only the abstract was read. It uploads "only when a noticeable
    deviation from previous epochs occurs"; the relative distance is ours. Not here: its two
    schemes that adapt the threshold, and its dimensionality reduction for the client's memory,
    for which `lightsplit | splitcom` remembers less.

    Parameters
    ----------
    threshold : float
        0 sends all of every batch.
    """

    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1

    remembers: ClassVar[bool] = True
    exposed: ClassVar = None
    analog: ClassVar = False
    up: ClassVar[str] = "tokens (b, N, D) in fp32 of b samples; B numbers of samples and flags"
    down: ClassVar[str] = "a gradient for every number of all B samples"

    @property
    def carries_counts(self) -> bool:
        """No: samples of different numbers of tokens cannot be told apart in a payload."""
        return False

    def for_gradients(self) -> Codec:
        """Raise ValueError: what is remembered are smashed data."""
        raise ValueError("SplitCom remembers smashed data; cut gradients differ at every visit")

    def omit(self, payload: Payload, samples: Tensor, memory: dict[str, Tensor]) -> Payload:
        """Leave out the samples that stay, and remember the others."""
        values = {name: value.detach() for name, value in payload.carried.items()}
        stays = self._stay(values, samples.tolist(), memory)
        moved = ~stays
        sent = {name: value[moved] for name, value in values.items() if bool(moved.any())}
        remember(memory, sent, samples[moved.cpu()].tolist())
        before = int(memory[SENT]) if SENT in memory else 0
        memory[SENT] = torch.tensor(before + 1, device=stays.device)
        known = {SAMPLES: samples.to(stays.device), STAYS: stays, SENT: memory[SENT]}
        return Payload(sent, {**payload.side, **known})

    def complete(self, payload: Payload, memory: dict[str, Tensor]) -> Payload:
        """Put in the samples that stay; ValueError if one of them never came."""
        side = dict(payload.side)
        samples, stays, sent = side.pop(SAMPLES).tolist(), side.pop(STAYS), side.pop(SENT)
        if int(sent) == 1:  # of a client that remembers nothing, so that nothing stays
            memory.clear()
        if (last := int(memory[SENT]) if SENT in memory else 0) + 1 != int(sent):
            raise ValueError(f"payload {int(sent)} after payload {last}: one was lost on the way")
        if stays.dtype != torch.bool or len(set(samples)) != len(samples) or not samples:
            raise ValueError(f"samples {samples} that stay or not: {stays.tolist()}")
        moved = [sample for sample, stay in zip(samples, stays.tolist(), strict=True) if not stay]
        lengths = {len(value) for value in payload.carried.values()}
        if lengths != ({len(moved)} if moved else set()):
            raise ValueError(f"the values of {len(moved)} samples were due")
        new = dict[str, Tensor]()
        remember(new, payload.carried, moved)
        names = [*payload.carried] or sorted({_name(key) for key in memory if key != SENT})
        if not names:
            raise ValueError("samples that stay, and none ever came")
        values = {
            name: torch.stack([_recalled(_key(name, sample), new, memory) for sample in samples])
            for name in names
        }
        memory |= {**new, SENT: sent}
        return Payload(values, side)

    def _stay(
        self, values: Mapping[str, Tensor], samples: list[int], memory: Mapping[str, Tensor]
    ) -> Tensor:
        """Tell which samples stay, (B,) booleans."""
        known = [_has(memory, values, sample) for sample in samples]
        moved, size = [], []
        for name, value in values.items():
            last = torch.zeros_like(value)
            for row, sample in enumerate(samples):
                if known[row]:
                    last[row] = memory[_key(name, sample)]
            moved.append((value - last).flatten(1))
            size.append(last.flatten(1))
        # of samples that are not known the last ones are zeros, from which none is less far than 0
        return torch.cat(moved, 1).norm(dim=1) < self.threshold * torch.cat(size, 1).norm(dim=1)


def remember(memory: dict[str, Tensor], values: Mapping[str, Tensor], samples: list[int]) -> None:
    """Replace what is remembered of `samples` by the rows of `values`, in their order."""
    for name, value in values.items():
        memory |= {
            _key(name, sample): row.clone() for sample, row in zip(samples, value, strict=True)
        }


def _has(memory: Mapping[str, Tensor], values: Mapping[str, Tensor], sample: int) -> bool:
    """Tell whether values of this shape are remembered of a sample."""
    shapes = {_key(name, sample): value.shape[1:] for name, value in values.items()}
    return all(key in memory and memory[key].shape == shape for key, shape in shapes.items())


def _recalled(key: str, new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> Tensor:
    """Return values that have just come, or came earlier; ValueError if they never came."""
    found = new.get(key, old.get(key))
    if found is None:
        raise ValueError(f"{key} stay, and never came")
    return found


def _key(name: str, sample: int) -> str:
    return f"{name} of {sample}"


def _name(key: str) -> str:
    return key.rpartition(" of ")[0]
