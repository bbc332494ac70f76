"""Skews: changes to clients' images and labels that make their training data differ.

Feature skew and label noise as in NIID-Bench (Li et al., ICDE 2022, sections 4.2 and 4.3),
except where a class says otherwise. The test split stays as it is. Every choice depends on
seed, skew, client and row alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain
from dataclasses import replace
from typing import Annotated, Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.seeds import Purpose, derive
from fl_split.spec_errors import SpecError
from fl_split.specs import STRICT, parse, stages
from fl_split.tables import Table
from simulations.data.images import Decoded, Images, Index, prefetch
from simulations.data.samples import Labels, Samples

Rate = Annotated[float, Field(ge=0, le=1)]


@plain(frozen=True)
class Owner:
    """A client that owns data.

    Attributes
    ----------
    number, clients : int
        Its number, from 0, among all clients.
    key : int
        What its random choices depend on: seed, skew and client.
    rows : array
        (n,) numbers of the rows that are asked for.
    """

    number: int
    clients: int
    key: int
    rows: NDArray[np.int64]

    @property
    def draw(self) -> np.random.Generator:
        """A generator of the client, the same each time: for what holds for all its images."""
        return np.random.default_rng(self.key)

    def draws(self) -> Iterator[np.random.Generator]:
        """A generator for each of the rows, the same whichever others are asked for."""
        for row in self.rows.tolist():
            yield np.random.default_rng([self.key, row])


class Skew:
    """Something that changes the training data of one client; this one changes nothing."""

    def pixels(self, pixels: Decoded, owner: Owner) -> Decoded:
        """Return the images (n, C, H, W) that `owner` sees instead of `pixels`.

        They are some of its images: what is drawn for one must not depend on the others, see
        :meth:`Owner.draws`. 0 is black, the largest number of the type is white.
        """
        return pixels

    def labels(self, labels: Labels, num_classes: int, owner: Owner) -> Labels:
        """Return the labels (n,), all of them, that `owner` has instead of `labels`."""
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

    def pixels(self, pixels: Decoded, owner: Owner) -> Decoded:
        """Turn."""
        from scipy import ndimage

        angle = self.angle(owner)
        turned = ndimage.rotate(
            pixels.astype(np.float32), angle, axes=(2, 3), reshape=False, order=1
        )
        return _as(turned, pixels)


@dataclass(frozen=True, config=STRICT)
class Noise(Skew):
    """Gaussian noise on the images of client i of K, numbered from 0, of deviation std * i / K.

    In units of pixels from 0 to 1, drawn once per image; sums are clipped to that range.
    """

    std: Annotated[float, Field(gt=0)] = 0.1

    def pixels(self, pixels: Decoded, owner: Owner) -> Decoded:
        """Add noise."""
        scale = np.iinfo(pixels.dtype).max * self.std * owner.number / owner.clients
        shape = pixels.shape[1:]
        noise = [one.standard_normal(shape, dtype=np.float32) for one in owner.draws()]
        return _as(pixels + np.float32(scale) * np.stack(noise), pixels)


@dataclass(frozen=True, config=STRICT)
class LabelNoise(Skew):
    """A share of each client's labels, rounded, becomes another class, all alike likely."""

    rate: Rate = 0.2

    def labels(self, labels: Labels, num_classes: int, owner: Owner) -> Labels:
        """Replace labels."""
        count = round(self.rate * len(labels)) if num_classes > 1 else 0
        draw, found = owner.draw, labels.copy()
        wrong = draw.permutation(len(labels))[:count]
        found[wrong] = (labels[wrong] + draw.integers(1, num_classes, count)) % num_classes
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


@plain(frozen=True)
class Skewed:
    """Images as their owners see them; skews are applied to the rows that are read.

    Attributes
    ----------
    owners : array
        (n,) the client that holds each row, -1 for nobody.
    """

    images: Images
    skews: Sequence[Skew]
    owners: NDArray[np.int32]
    clients: int
    seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, C, H, W)."""
        return self.images.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the images."""
        return self.images.dtype

    def __getitem__(self, rows: Index) -> Decoded:
        """Return some rows, each as its owner sees it."""
        numbers = np.arange(self.shape[0])[rows]
        found = self.images[rows].copy()
        owners = self.owners[numbers]
        for client in np.unique(owners[owners >= 0]).tolist():
            own = np.flatnonzero(owners == client)
            for skew in self.skews:
                owner = Owner(client, self.clients, _key(skew, self.seed, client), numbers[own])
                found[own] = skew.pixels(found[own], owner)
        return found

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Begin to decode rows that will be asked for soon."""
        prefetch(self.images, rows)


def skewed(
    table: Samples, skews: Sequence[Skew], seed: int, shards: Mapping[int, Labels]
) -> Samples:
    """Return training data as their clients see them; `table` itself stays as it is.

    Rows in `shards`, by client, are held out to test on: their images are skewed as those
    that the client trains on, their labels are right.
    """
    active = [skew for skew in skews if not isinstance(skew, NoSkew)]
    of_images = [skew for skew in active if type(skew).pixels is not Skew.pixels]
    of_labels = [skew for skew in active if type(skew).labels is not Skew.labels]
    if not active:
        return table
    clients, labels = len(table.partitions), table.labels
    if of_labels:
        labels = labels.copy()
        for skew in of_labels:
            for client, rows in enumerate(table.partitions):
                owner = Owner(client, clients, _key(skew, seed, client), rows)
                labels[rows] = skew.labels(labels[rows], table.num_classes, owner)
    if not of_images:
        return replace(table, labels=labels)
    owners = np.full(len(labels), -1, dtype=np.int32)
    for client, rows in enumerate(table.partitions):
        owners[rows] = client
    for client, rows in shards.items():
        owners[rows] = client
    return replace(
        table, pixels=Skewed(table.pixels, of_images, owners, clients, seed), labels=labels
    )


def _key(skew: Skew, seed: int, client: int) -> int:
    return derive(seed, cast(Purpose, type(skew).__name__), client)


def _as(values: NDArray[np.floating[Any]], pixels: Decoded) -> Decoded:
    """Round and clip values to the type of `pixels`."""
    white = np.iinfo(pixels.dtype).max
    found: Decoded = np.rint(values).clip(0, white).astype(pixels.dtype)
    return found
