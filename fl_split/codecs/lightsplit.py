"""After LightSplit (Cihangiroglu et al., 2026, arXiv 2605.13265): a fixed random projection."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs.codec import Codec, Ratio, Received, Smashed
from fl_split.payload import Payload
from fl_split.seeds import generator as seeded_generator
from fl_split.specs import STRICT

WIDTH = "width"


@dataclass(frozen=True, config=STRICT)
class LightSplit(Codec):
    """Send d' coordinates of every token, in an orthonormal system that a public seed draws.

    With Q (D, d'), d' = max(1, round(ratio D)), z Q is sent and z Q Q' is what the tail gets:
    of a token the part that lies in d' directions, whatever the data are. All d' = D of them
    rotate it, and what comes out is what went in. Gradients are exact.

    Reconstructed: of the paper only the abstract was read. It projects at the cut and lifts on
    the server; that this is done token by token, and by the transpose, is ours.

    Parameters
    ----------
    ratio : float
        d' / D.
    seed : int
        Of the projection. It is public: no secret is kept by it.
    """

    ratio: Ratio = 0.25
    seed: Annotated[int, Field(ge=0)] = 0

    carries_counts: ClassVar = True
    up: ClassVar[str] = "tokens (B, N, d') in fp32; D; labels"
    down: ClassVar[str] = "a gradient for every number that went up"

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Project tokens."""
        tokens = smashed.tokens @ self._system(smashed.tokens, smashed.tokens.shape[2])
        payload = super().encode(replace(smashed, tokens=tokens), generator)
        payload.side[WIDTH] = torch.tensor([smashed.tokens.shape[2]], device=tokens.device)
        return payload

    def decode(self, payload: Payload) -> Received:
        """Lift what was sent back to D numbers; ValueError if D cannot be."""
        narrow, width = payload.carried["tokens"].shape[-1], int(payload.side[WIDTH])
        if narrow != self._narrow(width):
            raise ValueError(f"{narrow} numbers for tokens of {width}")
        received = super().decode(payload)
        system = self._system(received.tokens, width)
        return replace(received, tokens=received.tokens @ system.T)

    def _narrow(self, width: int) -> int:
        return max(1, round(self.ratio * width))

    def _system(self, like: Tensor, width: int) -> Tensor:
        found = projection(width, self._narrow(width), self.seed, like.device)
        return found.to(like.dtype)


@lru_cache(maxsize=8)
def projection(width: int, narrow: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Return orthonormal columns (D, d') of a Gaussian matrix, uniform among all systems.

    Columns point as those that they are made of do, so that they do not depend on the library.
    Computed on the CPU in double precision, then moved.
    """
    draw = seeded_generator(seed, "projection", width, narrow)
    normal = torch.randn(width, narrow, generator=draw, dtype=torch.float64, device="cpu")
    columns, triangle = torch.linalg.qr(normal)
    return (columns * triangle.diagonal().sign()).float().to(device)
