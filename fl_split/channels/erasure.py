"""Erasure: packets get lost, and are sent again or not."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.channels.channel import (
    MOST_TRIES,
    Channel,
    Crossing,
    count_of,
    exposed,
    hits,
    pieces,
    tries,
)
from fl_split.codecs import Codec
from fl_split.payload import Extent, Payload
from fl_split.specs import STRICT


@dataclass(frozen=True, config=STRICT)
class Erasure(Channel):
    """Lose packets, each by itself with probability `p`.

    Parameters
    ----------
    p : float
        Chance that a packet is lost.
    packet : int
        Bytes of a packet; the last one of a message may be shorter.
    mode : "retransmit" or "drop"
        "retransmit": each packet is sent again until it arrives, so that only bytes grow. "drop":
        numbers in lost packets become zero, or what their codec has for zero; side information
        is sent again. A message whose codec needs all of it, as an entropy coder, is lost with
        its first packet that is.
    """

    p: Annotated[float, Field(ge=0, lt=1)] = 0.1
    packet: Annotated[int, Field(ge=16)] = 1500
    mode: Literal["retransmit", "drop"] = "retransmit"

    def __post_init__(self) -> None:
        if self.p > 1 - 1 / MOST_TRIES:
            raise ValueError(
                f"a packet needs more than {MOST_TRIES} tries on average at p={self.p:g}; "
                f"take p at most {1 - 1 / MOST_TRIES:g}"
            )

    def can_lose(self, codec: Codec) -> bool:
        """Tell whether `codec` needs all of a message, and nothing is sent again."""
        return self.mode == "drop" and codec.exposed is None

    def cross(self, data: bytes, codec: Codec, generator: torch.Generator) -> Crossing:
        """Lose packets."""
        if self.can_lose(codec):
            is_lost = len(hits(-(-len(data) // self.packet), self.p, generator)) > 0
            return Crossing(None if is_lost else data, len(data))
        spots = exposed(data, codec) if self.mode == "drop" else []
        once = sum(one.stop - one.start for one in spots)
        lost = hits(-(-once // self.packet), self.p, generator)
        sizes = pieces(len(data) - once, self.packet)
        often = tries(np.full(len(sizes), self.p), generator)
        resent = int((sizes * (often - 1)).sum())
        arrived, gone = _filled(data, codec, spots, lost, self.packet)
        count = count_of(gone)
        return Crossing(arrived, len(data) + resent, resent, damaged=count, zeroed=count, gone=gone)


def _filled(
    data: bytes, codec: Codec, spots: list[Extent], lost: NDArray[np.int64], packet: int
) -> tuple[bytes, dict[str, Tensor]]:
    """Fill numbers that lie in `lost` packets, at least in part; return which.

    The tensors in `spots` follow each other in packets.
    """
    if not len(lost):
        return data, {}
    payload, begin, found = Payload.from_bytes(data), 0, dict[str, Tensor]()
    filled = Payload(dict(payload.carried), dict(payload.side))
    for one in spots:
        tensors = filled.carried if one.is_value else filled.side
        tensor = tensors[one.name]
        edges = begin + one.bits * np.arange(tensor.numel() + 1)
        ends = edges[:-1] // (8 * packet), (edges[1:] - 1) // (8 * packet)
        gone = torch.from_numpy(np.isin(ends[0], lost) | np.isin(ends[1], lost)).view(tensor.shape)
        fill = torch.as_tensor(codec.fill(payload, one.name)).to(tensor.dtype)
        tensors[one.name] = torch.where(gone, fill, tensor)
        found[one.name] = gone
        begin += 8 * (one.stop - one.start)
    return filled.to_bytes(), found
