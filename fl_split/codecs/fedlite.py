"""FedLite: product quantisation with gradient correction (Wang et al., 2022, arXiv 2201.11865)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs.codec import Codec, Smashed
from fl_split.payload import Payload, check_size
from fl_split.specs import STRICT

CODES, CODEBOOK, SHAPE = "codes", "codebook", "shape"


@dataclass(frozen=True, config=STRICT)
class FedLite(Codec):
    """Cut every sample into sub-vectors and send, for each, the nearest of L centroids.

    The centroids are found by k-means over the batch, one codebook for each of R groups of
    consecutive sub-vectors. The gradient belongs to the reconstruction z'; the client adds
    strength * (z - z') to it, which pulls smashed data towards what can be sent.

    Parameters
    ----------
    length : int
        Numbers of a sub-vector, d / q; must divide D.
    centroids : int
        L, per group.
    groups : int
        R; must divide the number of sub-vectors.
    strength : float
        lambda of the paper.
    iterations : int
        Of k-means.
    """

    length: Annotated[int, Field(ge=1)] = 8
    centroids: Annotated[int, Field(ge=1)] = 16
    groups: Annotated[int, Field(ge=1)] = 1
    strength: Annotated[float, Field(ge=0)] = 1e-4
    iterations: Annotated[int, Field(ge=1)] = 10

    up: ClassVar[str] = "a centroid's number per sub-vector; codebooks in fp32; labels"
    down: ClassVar[str] = "a gradient for every number of the reconstruction"

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Send codes (B, q) and codebooks (R, L, length); values are the reconstruction."""
        tokens = smashed.tokens
        count = tokens[0].numel() // self.length
        if tokens.shape[-1] % self.length or count % self.groups:
            raise ValueError(
                f"length must divide {tokens.shape[-1]} and groups {count}, "
                f"got {self.length} and {self.groups}"
            )
        vectors = tokens.detach().reshape(len(tokens), self.groups, -1, self.length)
        points = vectors.transpose(0, 1).flatten(1, 2)  # groups points length
        found = [self._cluster(group, generator) for group in points]
        codes = torch.stack([codes.view(len(tokens), -1) for codes, _ in found], dim=1)
        codebook = torch.stack([book for _, book in found])
        values = _Corrected.apply(tokens, _rebuild(codes, codebook, tokens.shape), self.strength)
        shape = torch.tensor(tokens.shape, device=tokens.device)
        side = {CODES: codes, CODEBOOK: codebook, SHAPE: shape}
        return Payload({"tokens": values}, {"labels": smashed.labels, **side})

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Leave the reconstruction out: codes and codebook say it all."""
        return Payload({}, payload.side)

    def unpack(self, packed: Payload) -> Payload:
        """Rebuild values from codes and codebook."""
        side = packed.side
        shape = side[SHAPE].tolist()
        check_size(*shape)
        return Payload({"tokens": _rebuild(side[CODES], side[CODEBOOK], shape)}, side)

    def _cluster(self, points: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Lloyd's algorithm on (P, length); at most as many centroids as points."""
        count = min(self.centroids, len(points))
        drawn = torch.randperm(len(points), generator=generator).to(points.device)
        book = points[drawn[:count]]
        columns = torch.cat([points.T, points.new_ones(1, len(points))])  # 1 adds up to sizes
        for _ in range(self.iterations):
            sums = (columns @ _nearest(columns, book).T).T
            sizes = sums[:, -1:]
            book = torch.where(sizes > 0, sums[:, :-1] / sizes.clamp(min=1), book)
        numbers = torch.arange(count, dtype=points.dtype, device=points.device)
        return (numbers @ _nearest(columns, book)).long(), book


def _nearest(columns: Tensor, book: Tensor) -> Tensor:
    """One-hot (L, P) of the centroid nearest to each point (length + 1, P), the first of equals.

    Least |x - c|^2 is greatest c . x - |c|^2 / 2.
    """
    closeness = torch.cat([book, book.square().sum(dim=1, keepdim=True) / -2], dim=1) @ columns
    nearest = closeness.eq_(closeness.amax(dim=0))
    if int(nearest.sum()) != nearest.shape[1]:
        nearest *= nearest.long().cumsum(dim=0) == 1  # of floats CUDA's sums are in no fixed order
    return nearest


class _Corrected(torch.autograd.Function):
    """Forward the reconstruction; backward g + strength * (z - z')."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, rebuilt: Tensor, strength: float) -> Tensor:
        ctx.save_for_backward(tokens.detach() - rebuilt)
        ctx.strength = strength
        return rebuilt.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient + ctx.strength * ctx.saved_tensors[0], None, None


def _rebuild(codes: Tensor, codebook: Tensor, shape: Any) -> Tensor:
    """Centroids by codes (B, R, q / R) from codebooks (R, L, length), as `shape` (B, N, D)."""
    groups = torch.arange(len(codebook), device=codebook.device)[None, :, None]
    return codebook[groups, codes].reshape(*shape)
