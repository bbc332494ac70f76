"""How an image processor makes its images as large as a model takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fl_split.models.preprocessing import Resize

SQUASHED_FROM = 384
"""Pixels a side from which on ConvNeXT's processor cuts nothing off."""


@dataclass(frozen=True)
class Resizing:
    """As in :class:`~fl_split.models.preprocessing.Preprocessing`."""

    resize: Resize = ""
    shortest: int = 0
    notes: tuple[str, ...] = ()


def resizing(
    size: Mapping[str, int],
    crop: Mapping[str, int],
    crop_pct: float,
    trained_size: int,
    image_size: int,
) -> Resizing:
    """Say what a processor with these settings does.

    Parameters
    ----------
    size, crop : Mapping
        In pixels, by transformers' names: what images are resized to, what is cut out of their
        centre; nothing if empty.
    crop_pct : float
        ConvNeXT's share of the shortest side that is cut out; 0 for other processors.
    trained_size, image_size : int
        Pixels a side, as the checkpoint says and as the model is used; 0: any.

    Returns
    -------
    Resizing
        With `shortest` scaled to `image_size`.
    """
    names = set(size)
    if names == {"shortest_edge"} and crop_pct:  # ConvNeXT's own way
        side = size["shortest_edge"]
        before = int(side / crop_pct) if side < SQUASHED_FROM else side
        resize: Resize = "shortest+crop" if side < SQUASHED_FROM else "squash"
        return _scaled(resize, before, side, trained_size, image_size, ())
    notes = []
    if names == {"shortest_edge"}:
        resize, before = "shortest+crop", size["shortest_edge"]
        if not crop:
            notes.append("do_center_crop is false, but the model takes squares: the centre is used")
    elif names == {"height", "width"}:
        resize, before = "squash", size["height"]
        if size["width"] != before:
            notes.append(f"size is {before} x {size['width']}, but the model takes squares")
    else:
        told = ", ".join(f"{name} {pixels}" for name, pixels in size.items())
        return Resizing(notes=(f"size by {told} is not honoured",))
    side = crop["height"] if crop else before
    if crop and crop["width"] != side:
        notes.append(f"crop_size is {side} x {crop['width']}, but the model takes squares")
    if side > before:
        notes.append(f"crop_size {side} is more than size {before}: nothing is padded")
        before = side
    return _scaled(resize, before, side, trained_size, image_size, tuple(notes))


def _scaled(
    resize: Resize,
    before: int,
    side: int,
    trained_size: int,
    image_size: int,
    notes: tuple[str, ...],
) -> Resizing:
    """Turn images of `side` pixels, cut out of `before`, into images of `image_size`."""
    if not image_size:
        note = f"images keep the size of the data; image_size={side} is what is said there"
        return Resizing(notes=(*notes, note))
    if trained_size and side != trained_size:
        notes += (
            f"it makes images of {side} pixels, config.json says {trained_size}: the model gets "
            f"{image_size}; set image_size to choose",
        )
    shortest = round(before * image_size / side)
    if resize == "squash" and shortest == image_size:
        shortest = 0
    return Resizing(resize, shortest, notes)
