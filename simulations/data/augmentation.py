"""Augmentation: what a client does to the images of a batch before its head sees them.

Image operations are kornia's, batched on the device. Images are (B, C, H, W) float32 in [0, 1].
Everything random comes from torch's global generator, which is seeded by the step meanwhile, so
that a batch is the same whenever and wherever it is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.codecs import Mixed
from fl_split.exchange.protocol import Batch
from fl_split.seeds import StepId, seeded
from fl_split.specs import STRICT, parse, stages
from fl_split.tables import Table

Chance = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@runtime_checkable
class Augmentation(Protocol):
    """One operation on a batch."""

    @property
    def mixes_labels(self) -> bool:
        """Whether images are blended, so that labels are too."""
        ...

    def augmented(self, batch: Batch) -> Batch:
        """Return the batch with other images, and mixed labels if images are blended."""
        ...


class OfImages:
    """Base of operations that leave labels as they are."""

    mixes_labels: ClassVar[bool] = False
    is_deterministic: ClassVar[bool] = True
    """Whether CUDA can be made to give the same bits each time: sums of histograms cannot."""

    def augmented(self, batch: Batch) -> Batch:
        """Return the batch with other images."""
        return batch._replace(pixels=self.transform(batch.pixels))

    def transform(self, pixels: Tensor) -> Tensor:
        """Return other images (B, C, H, W)."""
        raise NotImplementedError


@dataclass(frozen=True, config=STRICT)
class Nothing(OfImages):
    """Images as they are."""

    def transform(self, pixels: Tensor) -> Tensor:
        """Return them."""
        return pixels


@dataclass(frozen=True, config=STRICT)
class Crop(OfImages):
    """Each image is shifted by up to `padding` pixels, what comes in is black or mirrored."""

    padding: Annotated[int, Field(ge=1)] = 4
    mirrored: bool = False

    def transform(self, pixels: Tensor) -> Tensor:
        """Crop the padded images to their size."""
        from kornia.augmentation import RandomCrop

        size = (pixels.shape[2], pixels.shape[3])
        if 2 * self.padding > min(size):
            raise ValueError(
                f"padding of crop must be at most half of the images' {min(size)} pixels, "
                f"{min(size) // 2}; got {self.padding}"
            )
        mode = "reflect" if self.mirrored else "constant"
        found: Tensor = RandomCrop(size, padding=self.padding, padding_mode=mode)(pixels)
        return found


@dataclass(frozen=True, config=STRICT)
class Flip(OfImages):
    """Each image is mirrored left to right with probability `p`."""

    p: Chance = 0.5

    def transform(self, pixels: Tensor) -> Tensor:
        """Mirror some."""
        from kornia.augmentation import RandomHorizontalFlip

        found: Tensor = RandomHorizontalFlip(p=self.p)(pixels)
        return found


@dataclass(frozen=True, config=STRICT)
class Jitter(OfImages):
    """Brightness, contrast, saturation and hue change by up to these shares."""

    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    def transform(self, pixels: Tensor) -> Tensor:
        """Change colours, the order of the four drawn anew for each batch."""
        from kornia.augmentation import ColorJitter

        strengths = self.brightness, self.contrast, self.saturation, self.hue
        return _in_colour(ColorJitter(*strengths), pixels)


@dataclass(frozen=True, config=STRICT)
class Erase(OfImages):
    """A random rectangle turns black, with probability `p` (Zhong et al., AAAI 2020)."""

    p: Chance = 0.25

    def transform(self, pixels: Tensor) -> Tensor:
        """Erase a rectangle of 2 to 33 % of some images."""
        from kornia.augmentation import RandomErasing

        found: Tensor = RandomErasing(p=self.p)(pixels)
        return found


@dataclass(frozen=True, config=STRICT)
class RandAugment(OfImages):
    """Cubuk et al. (NeurIPS 2020): `n` operations of strength `m`, of 30.

    Which ones is drawn for a whole batch, not for each image as in the paper; so the library has
    it.
    """

    n: Annotated[int, Field(ge=1, le=15)] = 2
    m: Annotated[int, Field(ge=1, lt=30)] = 9

    is_deterministic: ClassVar[bool] = False

    def transform(self, pixels: Tensor) -> Tensor:
        """Apply the operations."""
        from kornia.augmentation import auto

        return _in_colour(auto.RandAugment(self.n, self.m), pixels)


@dataclass(frozen=True, config=STRICT)
class Trivial(OfImages):
    """TrivialAugment (Müller and Hutter, ICCV 2021): one operation of any strength per batch."""

    is_deterministic: ClassVar[bool] = False

    def transform(self, pixels: Tensor) -> Tensor:
        """Apply it."""
        from kornia.augmentation import auto

        return _in_colour(auto.TrivialAugment(), pixels)


@dataclass(frozen=True, config=STRICT)
class Mixup:
    """Each image is blended with another of its batch (Zhang et al., ICLR 2018).

    The share of its own is drawn from Beta(alpha, alpha), one for the batch.
    """

    alpha: Positive = 0.2

    mixes_labels: ClassVar[bool] = True

    def augmented(self, batch: Batch) -> Batch:
        """Blend pixels and labels."""
        share, partners = _drawn(self.alpha, batch)
        pixels = share * batch.pixels + (1 - share) * batch.pixels[partners]
        return batch._replace(pixels=pixels, mixed=Mixed(batch.labels[partners], share))


@dataclass(frozen=True, config=STRICT)
class CutMix:
    """A rectangle of each image is another one's (Yun et al., ICCV 2019).

    Its area is a share drawn from Beta(alpha, alpha), one rectangle for the batch; what lies
    outside the image is cut off, and labels are mixed by what is left.
    """

    alpha: Positive = 1.0

    mixes_labels: ClassVar[bool] = True

    def augmented(self, batch: Batch) -> Batch:
        """Paste the rectangle, and mix labels by its area."""
        share, partners = _drawn(self.alpha, batch)
        height, width = batch.pixels.shape[2:]
        side = (1 - share) ** 0.5
        spans = [_span(size, side) for size in (height, width)]
        (top, bottom), (left, right) = spans
        pixels = batch.pixels.clone()
        window = (slice(None), slice(None), slice(top, bottom), slice(left, right))
        pixels[window] = batch.pixels[partners][window]
        kept = 1 - (bottom - top) * (right - left) / (height * width)
        return batch._replace(pixels=pixels, mixed=Mixed(batch.labels[partners], kept))


AUGMENTATIONS: Table[Any] = Table(
    Augmentation,
    "fl_split.augmentations",
    {
        "crop": Crop,
        "cutmix": CutMix,
        "erase": Erase,
        "flip": Flip,
        "jitter": Jitter,
        "mixup": Mixup,
        "none": Nothing,
        "randaugment": RandAugment,
        "trivial": Trivial,
    },
)


def parse_augment(spec: str) -> Sequence[Augmentation]:
    """Build ``"a(...) | b(...)"``, what changes nothing left out; SpecError if that cannot be."""
    found = [parse(part, AUGMENTATIONS) for part in stages(spec)]
    return [one for one in found if not isinstance(one, Nothing)]


def augmented(batch: Batch, operations: Sequence[Augmentation], at: StepId) -> Batch:
    """Return what `operations` make of images in [0, 1], one after the other, in a step."""
    with seeded(at.seed, "augment", *at.path()), torch.no_grad():
        for operation in operations:
            batch = operation.augmented(batch)
    return batch


def _in_colour(transform: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Apply what only takes three channels; grey images have three equal ones meanwhile."""
    count = pixels.shape[1]
    return transform(pixels.expand(-1, 3, -1, -1) if count == 1 else pixels)[:, :count]


def _drawn(alpha: float, batch: Batch) -> tuple[float, Tensor]:
    """Draw the share of an image's own, and its partners (B,)."""
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    return share, torch.randperm(len(batch.labels)).to(batch.labels.device)


def _span(size: int, side: float) -> tuple[int, int]:
    """Draw where a span of `side` times `size` pixels begins and ends, within them."""
    middle, half = int(torch.randint(size, ())), round(size * side) / 2
    return max(0, round(middle - half)), min(size, round(middle + half))
