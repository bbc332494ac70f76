"""C3-SL: circular convolution compresses a batch (Hsieh et al., BMVC 2022, arXiv 2207.12397)."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs.codec import Codec, Received, Smashed
from fl_split.payload import Payload
from fl_split.seeds import generator as seeded_generator
from fl_split.specs import STRICT


@dataclass(frozen=True, config=STRICT)
class C3SL(Codec):
    """Bind each of R samples to a key by circular convolution and send their sum.

    V = sum_i K_i * z_i over R consecutive samples; z'_i is the correlation of V with K_i.
    Keys come from a public seed and are not sent. What is left of the other samples is
    noise that training must live with.

    Parameters
    ----------
    factor : int
        R, samples per sum; a last group may be smaller.
    keys : "normal" or "unitary"
        N(0, 1 / d) scaled to unit length (the paper), or with a flat spectrum, which
        takes the key's own noise away.
    """

    factor: Annotated[int, Field(ge=1)] = 4
    keys: Literal["normal", "unitary"] = "normal"

    up: ClassVar[str] = "a sum (N, D) in fp32 per R samples; labels"
    down: ClassVar[str] = "a gradient per sum"

    def nominal_ratio(self, batch: float, numbers: int) -> float:
        """Return 1 / R."""
        return 1 / self.factor

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Send sums (ceil(B / R), N, D)."""
        flat = smashed.tokens.flatten(1)
        missing = -len(flat) % self.factor
        groups = torch.cat([flat, flat.new_zeros(missing, flat.shape[1])])
        groups = groups.view(-1, self.factor, flat.shape[1])  # groups R d
        bound = torch.fft.rfft(groups) * self._spectra(flat)
        sums = torch.fft.irfft(bound.sum(dim=1), n=flat.shape[1])
        shape = smashed.tokens.shape[1:]
        return Payload({"sums": sums.view(-1, *shape)}, {"labels": smashed.labels})

    def decode(self, payload: Payload) -> Received:
        """Correlate each sum with the keys of its samples."""
        sums, labels = payload.carried["sums"], payload.side["labels"].long()
        if -(-len(labels) // self.factor) != len(sums):
            raise ValueError(f"{len(sums)} sums for {len(labels)} labels")
        flat = sums.flatten(1)
        spectra = self._spectra(flat).conj()
        found = torch.fft.irfft(torch.fft.rfft(flat)[:, None] * spectra, n=flat.shape[1])
        return Received(found.flatten(0, 1)[: len(labels)].view(-1, *sums.shape[1:]), labels)

    def _spectra(self, flat: Tensor) -> Tensor:
        return key_spectra(self.factor, flat.shape[1], self.keys == "unitary", flat.device)


@lru_cache(maxsize=8)
def key_spectra(count: int, size: int, unitary: bool, device: torch.device | str = "cpu") -> Tensor:
    """Spectra (R, d // 2 + 1) of the public keys, complex; computed on the CPU, then moved."""
    draw = seeded_generator(0, "c3sl keys", count, size)
    keys = torch.randn(count, size, generator=draw, device="cpu")
    spectra = torch.fft.rfft(keys / keys.norm(dim=1, keepdim=True))
    if unitary:
        spectra = spectra / spectra.abs().clamp(min=1e-12)
    return spectra.to(device)
