"""From the contents of an image file to numbers: one rule for each thing that images differ in.

Orientation
    An image is turned as its EXIF tag says.
Frames
    Of several frames the first is taken.
Palette, CMYK, YCbCr, alpha
    Colours are converted to RGB; an alpha channel is left out.
Depth
    8 bits stay as they are. Images of more bits (16-bit, 32-bit, floats) are scaled linearly from
    the range of all training images to 0..65535, so that no level of 16 bits is lost; values of
    test images outside the range are clipped. Colours of more than 8 bits are read in 8.
Size
    ``squash`` changes the proportions, ``shortest+crop`` scales the shorter side and cuts out the
    middle, ``pad`` scales the longer side and fills up with black. A checkpoint may say how large
    images are before the middle is cut out.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fl_split.models.preprocessing import Fit

DEEP = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
"""Modes of more than 8 bits."""

GREY = frozenset({"1", "L", "LA", "La"}) | DEEP
"""Modes without colour."""

RULES = 1
"""Number of the rules above: raise it when a :class:`Transform` comes to give other pixels, so that
no cache keeps the old ones."""

BYTE, WORD = np.iinfo(np.uint8).max, np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Transform:
    """How an image becomes an array (C, size, size).

    Attributes
    ----------
    size, channels : int
        Side of the result; 1 for grey, 3 for colour.
    fit : str
        What is done to images that are not square.
    shortest : int
        Side that images are scaled to before the middle is cut out; 0 is `size`.
    interpolation : str
        Name of a filter of PIL.
    low, high : float, optional
        The range that deep images are scaled from; equal for data of 8 bits.
    """

    size: int
    channels: int
    fit: Fit = "squash"
    shortest: int = 0
    interpolation: str = "bicubic"
    low: float = 0.0
    high: float = 0.0

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """uint8, or uint16 where data have more than 8 bits."""
        return np.dtype(np.uint16 if self.high > self.low else np.uint8)

    @property
    def way(self) -> str:
        """Say how images of another size are brought to this one."""
        if self.shortest in {0, self.size}:
            return self.fit
        return f"{self.fit}: to {self.shortest}, of which the middle {self.size} are cut out"

    def apply(self, contents: bytes) -> NDArray[np.unsignedinteger]:
        """Decode an image; whatever PIL raises means that it cannot be used."""
        image = upright(contents)
        if self.high > self.low:
            return self._deep(image)
        image = self._fitted(image.convert("L" if self.channels == 1 else "RGB"))
        return np.asarray(image).reshape(self.size, self.size, self.channels).transpose(2, 0, 1)

    def of_arrays(
        self, pixels: NDArray[np.unsignedinteger] | None
    ) -> NDArray[np.unsignedinteger] | None:
        """Return images (n, H, W, C) as (n, C, H, W), if nothing else is to be done to them."""
        shape = self.size, self.size, self.channels
        if pixels is None or pixels.shape[1:] != shape or self.shortest not in {0, self.size}:
            return None
        is_ready = pixels.dtype == self.dtype == np.uint8
        return pixels.transpose(0, 3, 1, 2) if is_ready else None

    def _deep(self, image: Image.Image) -> NDArray[np.unsignedinteger]:
        """Scale a deep image from low..high, one of 8 bits from 0..255, to 0..65535."""
        low, high = (self.low, self.high) if image.mode in DEEP else (0.0, float(BYTE))
        bands = [image] if image.mode in DEEP else image.convert("RGB").split()
        if self.channels == 1:
            bands = bands if len(bands) == 1 else [image.convert("L")]
        planes = []
        for band in bands:
            values = (np.asarray(band, dtype=np.float64) - low) * (WORD / (high - low))
            fitted = np.asarray(self._fitted(Image.fromarray(values.astype(np.float32))))
            planes.append(np.rint(fitted).clip(0, WORD).astype(np.uint16))
        return np.stack(planes * (self.channels // len(planes)))

    def _fitted(self, image: Image.Image) -> Image.Image:
        """Bring an image to size x size."""
        resample = Image.Resampling[self.interpolation.upper()]
        square, (width, height) = (self.size, self.size), image.size
        if image.size == square and self.shortest in {0, self.size}:
            return image
        if self.fit == "pad":
            scale = self.size / max(width, height)
            image = image.resize((_scaled(width, scale), _scaled(height, scale)), resample)
            canvas = Image.new(image.mode, square)
            canvas.paste(image, ((self.size - image.width) // 2, (self.size - image.height) // 2))
            return canvas
        if self.fit == "shortest+crop":
            side, short = self.shortest or self.size, min(width, height)
            image = image.resize((side * width // short, side * height // short), resample)
        else:
            image = image.resize((self.shortest or self.size,) * 2, resample)
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))


def upright(contents: bytes) -> Image.Image:
    """Decode the first frame of an image, turned as its orientation tag says."""
    image = Image.open(io.BytesIO(contents))
    image.load()
    return ImageOps.exif_transpose(image)


def _scaled(side: int, scale: float) -> int:
    return max(1, round(side * scale))
