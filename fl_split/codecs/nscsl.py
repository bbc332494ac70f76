"""After NSC-SL (Fang et al., 2026, arXiv 2602.02696): a batch in its leading directions."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs.codec import Codec, Received, Smashed
from fl_split.payload import Payload
from fl_split.specs import STRICT

BASIS = "basis"


@dataclass(frozen=True, config=STRICT)
class NSCSL(Codec):
    """Send every token by its coordinates in the leading singular directions of its batch.

    All tokens of a batch are the rows of one matrix Z. Its r leading right singular vectors
    V (D, r) are sent, and Z V; the tail gets Z V V', the best approximation of rank r. r is the
    least rank that has the share `energy` of the squares of all singular values. All of them
    give back what went in. The basis is taken as given: the gradient of Z is that of Z V, times V'.

    Reconstructed: of the paper only the abstract was read. Not here: its alternating orthogonal
    iteration (singular vectors are computed exactly), and its residual feedback, for the rows of
    the next batch are other samples. The bandwidth that it follows is `most`.

    Parameters
    ----------
    energy : float
        Share that decides on r.
    most : int
        What r never exceeds; 0 sets no limit.
    """

    energy: Annotated[float, Field(gt=0, le=1)] = 0.9
    most: Annotated[int, Field(ge=0)] = 0

    in_place: ClassVar[bool] = False
    carries_counts: ClassVar = True
    up: ClassVar[str] = "tokens (B, N, r) and the basis (D, r) in fp32; labels"
    down: ClassVar[str] = "a gradient for every coordinate"

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Find the basis and send coordinates; ValueError for numbers that are not finite."""
        rows = smashed.tokens.detach().flatten(0, 1)
        if not bool(rows.isfinite().all()):
            raise ValueError("values that are not finite")
        basis = directions(rows, self.energy, self.most)
        payload = super().encode(replace(smashed, tokens=smashed.tokens @ basis), generator)
        payload.side[BASIS] = basis
        return payload

    def decode(self, payload: Payload) -> Received:
        """Return tokens of rank r."""
        basis = payload.side[BASIS]
        if not bool(basis.isfinite().all()):
            raise ValueError("a basis that is not finite")
        received = super().decode(payload)
        return replace(received, tokens=received.tokens @ basis.T)


def directions(rows: Tensor, energy: float, most: int = 0) -> Tensor:
    """Return the leading right singular vectors (D, r) of `rows` (n, D).

    As eigenvectors of Z' Z, in double precision: D is small, n is not.
    """
    exact = rows.double()
    values, vectors = torch.linalg.eigh(exact.T @ exact)  # rising
    squares = values.flip(0).clamp(min=0)
    largest = min(rows.shape)
    missing = squares.sum() * (1 - energy)
    tails = squares.sum() - squares.cumsum(0)
    rank = largest if energy == 1 else 1 + int((tails > missing).sum())
    rank = max(1, min(rank, largest, most or largest))
    return vectors.flip(1)[:, :rank].to(rows.dtype).contiguous()
