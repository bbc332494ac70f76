"""What is done to an image before a model sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Fit = Literal["squash", "shortest+crop", "pad"]
"""How an image that is not square becomes one."""

Resize = Literal[Fit, ""]
"""The same; empty leaves it to somebody else."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


@dataclass(frozen=True)
class Preprocessing:
    """How images of any size become the square input of a model.

    Attributes
    ----------
    mean, std : tuple of float
        What pixels p in [0, 1] are normalised by, (p - mean) / std; one number, or one per
        channel.
    resize : "squash", "shortest+crop", "pad" or ""
        "squash" changes the aspect ratio. "shortest+crop" keeps it: the shorter side becomes
        `shortest` pixels, then the centre is cut out. "pad" keeps all of the image and fills
        up to a square. "" is the experiment's choice.
    shortest : int
        Pixels of the shorter side before the centre is cut out, for the `image_size` that the
        model has. With "squash" it is both sides. 0: nothing is cut off.
    interpolation : str
        The filter of resizing, by Pillow's name.
    notes : tuple of str
        Settings that are not honoured, and what is done instead; a user should be told.
    origin : str
        What says so, as the file of a checkpoint; empty: it is the default.
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    resize: Resize = ""
    shortest: int = 0
    interpolation: Interpolation = "bicubic"
    notes: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)

    def told(self) -> str:
        """Say in a line how pixels are normalised and images resized, and what says so."""
        mean, std = (
            ", ".join(f"{one:.4g}" for one in numbers) for numbers in (self.mean, self.std)
        )
        origin = f"as {self.origin} says" if self.origin else "the default"
        return (
            f"from 0 to 1, less mean {mean}, divided by deviation {std}; filter of resizing: "
            f"{self.interpolation} ({origin})"
        )
