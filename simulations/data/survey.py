"""A survey of images: sizes, modes, depths, faults; of all of them, not of the first."""

from __future__ import annotations

import hashlib
import io
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from simulations.data.encoded import EncodedImages, NoImage, in_threads
from simulations.data.pictures import DEEP, GREY, upright
from simulations.data.raw import pixels_of

ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
TURNED = frozenset({5, 6, 7, 8})
"""Orientation tags under which width and height change places."""

PNG = b"\x89PNG\r\n\x1a\n"
NETPBM = re.compile(rb"P[36](?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)")
"""Colours of Netpbm, and the number that is white."""

BITS, BITS_PER_SAMPLE = 8, 258
"""Of a colour where nothing else is said; the tag of TIFF that says it."""


class Look(NamedTuple):
    """What one image is; `fault` says why it cannot be used."""

    size: tuple[int, int] = (0, 0)
    mode: str = ""
    remarks: tuple[str, ...] = ()
    low: float = np.inf
    high: float = -np.inf
    fault: str = ""


@dataclass(frozen=True)
class Survey:
    """What the images of a data set are.

    Attributes
    ----------
    sizes : Counter
        Images by (width, height), as they are shown: after turning.
    modes : Counter
        Images by mode of PIL.
    remarks : Counter
        Images by what is done to them beside: turned, alpha left out, first frame taken, ...
    lows, highs : array
        Smallest and largest value of each image; infinite for those of 8 bits, and empty where
        there are no others.
    bad : dict
        Number of an image that cannot be used, and why.
    digest : str
        Of the contents of all images.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    lows: array[float] = field(default_factory=lambda: array("d"))
    highs: array[float] = field(default_factory=lambda: array("d"))
    bad: dict[int, str] = field(default_factory=dict)
    digest: str = ""

    @property
    def side(self) -> int:
        """The longer side of the commonest size; of sizes equally common the larger."""
        commonest, _ = max(self.sizes.items(), key=lambda one: (one[1], one[0]))
        return max(commonest)

    @property
    def channels(self) -> int:
        """1 if all images are grey, else 3."""
        return 1 if set(self.modes) <= GREY else 3

    @property
    def is_deep(self) -> bool:
        """Whether there are images of more than 8 bits."""
        return bool(DEEP & set(self.modes))

    def record(self) -> dict[str, Any]:
        """Return what :meth:`of_record` reads."""
        sizes = [[*size, count] for size, count in self.sizes.items()]
        return {**vars(self), "lows": [*self.lows], "highs": [*self.highs], "sizes": sizes}

    def ranges(self, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return smallest and largest value (n, 2) of some images."""
        if not self.is_deep:
            return np.full((len(numbers), 2), np.inf)
        return np.stack([np.array(self.lows)[numbers], np.array(self.highs)[numbers]], axis=1)

    @classmethod
    def of_record(cls, found: Mapping[str, Any]) -> Survey:
        """Read a survey; KeyError, TypeError or ValueError if it is none."""
        return cls(
            Counter({(width, height): count for width, height, count in found["sizes"]}),
            Counter(found["modes"]),
            Counter(found["remarks"]),
            array("d", found["lows"]),
            array("d", found["highs"]),
            {int(number): str(fault) for number, fault in found["bad"].items()},
            found["digest"],
        )


def survey(
    images: EncodedImages,
    decodes: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """Look at all images; with `decodes` at every pixel, which finds files that end early.

    `progress` is told how many images are done, of how many.
    """
    digest = hashlib.blake2b(digest_size=16)
    found = Survey()
    with ThreadPoolExecutor(max_workers=2) as pool:  # decoding needs no lock of Python
        for start, chunk in images.chunks():
            progress(start, len(images))
            for contents in chunk:
                digest.update(contents if isinstance(contents, bytes) else b"")
                digest.update(b"|")
            arrays = pixels_of(chunk)
            looks = (
                in_threads(pool, lambda one: look(one, decodes), chunk)
                if arrays is None
                else _look_at_arrays(arrays)
            )
            for number, one in enumerate(looks, start):
                found.lows.append(one.low)
                found.highs.append(one.high)
                if one.fault:
                    found.bad[number] = one.fault
                    continue
                found.sizes[one.size] += 1
                found.modes[one.mode] += 1
                found.remarks.update(one.remarks)
    if not found.is_deep:
        del found.lows[:], found.highs[:]
    return replace(found, digest=digest.hexdigest())


def _look_at_arrays(pixels: NDArray[np.unsignedinteger[Any]]) -> list[Look]:
    """Look at images (n, H, W, C) that were an array."""
    height, width, bands = pixels.shape[1:]
    if pixels.dtype == np.uint8:
        return [Look((width, height), "L" if bands == 1 else "RGB")] * len(pixels)
    lows, highs = (edge(pixels, axis=(1, 2, 3)).tolist() for edge in (np.min, np.max))
    return [
        Look((width, height), "I", low=low, high=high)
        for low, high in zip(lows, highs, strict=True)
    ]


def look(contents: bytes | NoImage, decodes: bool = False) -> Look:
    """Look at one image: at its header, and at its pixels if they are deep or shall be decoded."""
    if isinstance(contents, NoImage):
        return Look(fault=str(contents))
    try:
        image = Image.open(io.BytesIO(contents))
        turned = _orientation(image)
        size = image.size[::-1] if turned in TURNED else image.size
        mode, remarks = image.mode, tuple(_remarks(image, contents, turned))
        low, high = np.inf, -np.inf
        if decodes or mode in DEEP:
            pixels = np.asarray(upright(contents))
            if mode in DEEP:
                low, high = float(pixels.min()), float(pixels.max())
        if not np.isfinite(high - low) and mode in DEEP:
            return Look(fault="values that are not finite")
    except Exception as error:  # each image format fails in its own way
        return Look(fault=str(error).replace(_buffer(error), "").strip() or repr(error))
    return Look(size, mode, remarks, low, high)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # looking for one would decode the image
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _buffer(error: Exception) -> str:
    """Return the address of a buffer in PIL's message, which differs each time."""
    text = str(error)
    start = text.find("<_io.BytesIO")
    return text[start : text.find(">", start) + 1] if start >= 0 else "\0"


def _remarks(image: Image.Image, contents: bytes, turned: int) -> Iterator[str]:
    if turned != 1:
        yield "turned as the orientation tag says"
    if image.mode in ALPHA or "transparency" in image.info:
        yield "with an alpha channel, which is left out"
    if image.format in {"GIF", "TIFF", "WEBP"} and getattr(image, "is_animated", False):
        yield "with several frames, the first is taken"
    if image.mode not in DEEP and _bits(image, contents) > BITS:
        yield "of more than 8 bits a colour, of which the library reads the upper 8 bits only"


def _bits(image: Image.Image, contents: bytes) -> int:
    """Return how many bits a colour has in the file, for the formats that may have more than 8."""
    if contents.startswith(PNG):
        return contents[24]
    if image.format == "TIFF":
        return max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (BITS,)))
    if white := NETPBM.match(contents):
        return int(white.group(1)).bit_length()
    return BITS
