"""Skews: changes to clients' images and labels that make their training data differ.

Feature skew and label noise as in NIID-Bench (Li et al., ICDE 2022, sections 4.2 and 4.3),
except where a class says otherwise. The test split stays as it is. Every choice depends on
seed, skew and client alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain
from dataclasses import replace
from typing import Annotated, cast

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.seeds import Purpose, derive
from fl_split.spec_errors import SpecError
from fl_split.specs import STRICT, parse, stages
from fl_split.tables import Table
from simulations.data.samples import Labels, Pixels, Samples

Rate = Annotated[float, Field(ge=0, le=1)]


@plain(frozen=True)
class Owner:
    """A client that owns data: its number among `clients`, and a random generator of its own."""

    number: int
    clients: int
    draw: np.random.Generator


class Skew:
    """Something that changes the training data of one client; this one changes nothing."""

    def pixels(self, pixels: Pixels, owner: Owner) -> Pixels:
        """Return the images (n, C, H, W) that `owner` sees instead of `pixels`."""
        return pixels

    def labels(self, labels: Labels, num_classes: int, owner: Owner) -> Labels:
        """Return the labels (n,) that `owner` has instead of `labels`."""
        return labels


@dataclass(frozen=True, config=STRICT)
class NoSkew(Skew):
    """Clients see the data as they are."""


@dataclass(frozen=True, config=STRICT)
class Rotation(Skew):
    """Each client turns all its images by one angle, drawn from -degrees to degrees.

    Bilinear; corners that come from outside the image are black.
    """

    degrees: Annotated[float, Field(gt=0, le=180)] = 45.0

    def angle(self, owner: Owner) -> float:
        """Degrees, counter-clockwise."""
        return float(owner.draw.uniform(-self.degrees, self.degrees))

    def pixels(self, pixels: Pixels, owner: Owner) -> Pixels:
        """Turn."""
        from scipy import ndimage

        angle = self.angle(owner)
        turned = ndimage.rotate(
            pixels.astype(np.float32), angle, axes=(2, 3), reshape=False, order=1
        )
        return np.rint(turned).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True, config=STRICT)
class Noise(Skew):
    """Gaussian noise on the images of client i of K, numbered from 0, of deviation std * i / K.

    In units of pixels from 0 to 1, drawn once per image; sums are clipped to that range.
    """

    std: Annotated[float, Field(gt=0)] = 0.1

    def pixels(self, pixels: Pixels, owner: Owner) -> Pixels:
        """Add noise."""
        scale = 255 * self.std * owner.number / owner.clients
        noise = scale * owner.draw.standard_normal(pixels.shape, dtype=np.float32)
        return np.rint(pixels + noise).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True, config=STRICT)
class LabelNoise(Skew):
    """A share of each client's labels, rounded, becomes another class, all alike likely."""

    rate: Rate = 0.2

    def labels(self, labels: Labels, num_classes: int, owner: Owner) -> Labels:
        """Replace labels."""
        count = round(self.rate * len(labels)) if num_classes > 1 else 0
        wrong = owner.draw.permutation(len(labels))[:count]
        found = labels.copy()
        found[wrong] = (labels[wrong] + owner.draw.integers(1, num_classes, count)) % num_classes
        return found


SKEWS: Table[type[Skew]] = Table(
    Skew,
    "fl_split.skews",
    {
        "label_noise": LabelNoise,
        "noise": Noise,
        "none": NoSkew,
        "rotation": Rotation,
    },
)


def parse_skew(spec: str) -> tuple[Skew, ...]:
    """Build one skew, or those of ``"a(...) | b(...)"``; SpecError if that cannot be."""
    found = tuple(parse(part, SKEWS) for part in stages(spec))
    if len({type(skew) for skew in found}) < len(found):
        raise SpecError(f"{spec!r}: a skew can come only once")
    return found


def skewed(
    table: Samples, skews: Sequence[Skew], seed: int, shards: Mapping[int, Labels]
) -> Samples:
    """Return training data as their clients see them; `table` itself stays as it is.

    Rows in `shards`, by client, are held out to test on: their images are skewed as those
    that the client trains on, their labels are right.
    """
    if all(isinstance(skew, NoSkew) for skew in skews):
        return table
    pixels, labels = table.pixels.copy(), table.labels.copy()
    for skew in skews:
        for client, rows in enumerate(table.partitions):
            draw = np.random.default_rng(derive(seed, cast(Purpose, type(skew).__name__), client))
            owner = Owner(client, len(table.partitions), draw)
            labels[rows] = skew.labels(labels[rows], table.num_classes, owner)
            seen = np.concatenate([rows, shards.get(client, rows[:0])])
            if pixels[seen].size:  # a client may hold none, and labels may come alone
                pixels[seen] = skew.pixels(pixels[seen], owner)
    return replace(table, pixels=pixels, labels=labels)
