"""From a source to decoded images: what they are, what is done to them, where they are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from fl_split.models.preprocessing import Preprocessing, Resize
from simulations.data import cache
from simulations.data.cache import Progress
from simulations.data.depth import Depth, Ranges, depth
from simulations.data.encoded import EncodedImages
from simulations.data.images import DataError, Images, Selected, bad_images
from simulations.data.pictures import GREY, Transform
from simulations.data.sources import Source
from simulations.data.splits import Decision, Split
from simulations.data.survey import Survey

OnBad = Literal["error", "skip"]

LISTED = 3
"""Sizes, modes or images that a message names."""


@dataclass(frozen=True)
class Wishes:
    """What was asked for: empty texts and 0 leave it to the model and the data.

    Attributes
    ----------
    fit, test_fit : str
        What is done to images of other proportions, in training and in testing.
    channels : int
        1 for grey, 3 for colour.
    """

    fit: Resize = ""
    test_fit: Resize = ""
    channels: int = 0


@dataclass(frozen=True, eq=False)
class Surveyed:
    """A source of which all images have been looked at.

    Attributes
    ----------
    stores : list of EncodedImages
        Images of both splits, or of each.
    survey : Survey
        Of all of them.
    depth : Depth, optional
        Where there are images of more than 8 bits.
    decisions : list of Decision
        About images, beside those of the source.
    """

    source: Source
    stores: list[EncodedImages]
    digests: list[str]
    survey: Survey
    depth: Depth | None = None
    decisions: list[Decision] = field(default_factory=list)

    def sizes(self) -> str:
        """Say which sizes the images have, the commonest first."""
        return _counted(Counter({f"{w}x{h}": n for (w, h), n in self.survey.sizes.items()}))


def look_at(source: Source, on_bad: OnBad, progress: Progress, decodes: bool = False) -> Surveyed:
    """Look at all images of a source; leave those out that cannot be used, if asked to.

    With `decodes`, and where images may be left out, each is decoded: that finds those cut off.

    Raises
    ------
    DataError
        Images that cannot be used, or nothing is left of a split.
    """
    decided: list[Decision] = []

    def note(text: str) -> None:
        decided.append(Decision("cache", text))

    stores = source.stores()
    decodes = decodes or on_bad == "skip"
    found = [cache.surveyed(store, decodes, progress, note) for store in stores]
    for store, one in zip(stores, found, strict=True):
        if one.bad and on_bad == "error":
            raise DataError(f"{bad_images(store, one.bad)}; on_bad_image='skip' leaves them out")
        if one.bad:
            decided.append(
                Decision("images", f"left out: {bad_images(store, one.bad)}", "on_bad_image")
            )
    digests = [f"{one.digest} {sorted(one.bad)}" for one in found]
    looked_at = stores
    if any(one.bad for one in found):
        source = _without(source, stores, found)
        stores = source.stores()
    deep = depth(*_ranges(source, looked_at, found))
    return Surveyed(source, stores, digests, _sum(found), deep, decided)


def decide(
    looked: Surveyed, wishes: Wishes, size: int, channels: int, model: Preprocessing
) -> tuple[Transform, Transform, list[Decision]]:
    """Decide how images become arrays, to train and to test on.

    Parameters
    ----------
    looked : Surveyed
        What all images are.
    wishes : Wishes
        What was asked for.
    size, channels : int
        What the model takes.
    model : Preprocessing
        How the model wants its images.
    """
    survey = looked.survey
    own = model.resize or "squash"
    base = Transform(size, channels, own, model.shortest, model.interpolation)
    if looked.depth:
        base = replace(base, low=looked.depth.low, high=looked.depth.high)
    train = _fitted(base, wishes.fit)
    test = _fitted(base, wishes.test_fit or wishes.fit)
    decisions = [
        _on_size(looked, train, test),
        _on_channels(survey, channels, channels not in {wishes.channels, survey.channels}),
    ]
    decisions.append(Decision("pixels", model.told(), "model"))
    if looked.depth:
        decisions.append(looked.depth.decision())
    for remark, count in survey.remarks.items():
        decisions.append(Decision("images", f"{count:,} {remark}"))
    decisions += [Decision("model", note) for note in model.notes]
    return train, test, [one for one in decisions if one.text]


def decode(
    looked: Surveyed,
    name: str,
    transforms: tuple[Transform, Transform],
    limit: float,
    progress: Progress,
) -> tuple[Images, Images, list[Decision]]:
    """Decode the images to train and to test on.

    `name` is what the data set is called; `limit` are the bytes that the cache may have.
    """
    decided: list[Decision] = []

    def note(text: str) -> None:
        if not any(one.text == text for one in decided):
            decided.append(Decision("cache", text, "cache_gb"))

    halves = looked.source.train, looked.source.test
    several = 3 - len(looked.stores)  # halves of one table share its images
    stores, digests = looked.stores * several, looked.digests * several
    made: dict[tuple[str, Transform], Images] = {}
    found = []
    for half, store, digest, transform in zip(halves, stores, digests, transforms, strict=True):
        key = digest, transform
        if key not in made:
            made[key] = cache.decode(store, name, digest, transform, limit, progress, note)
        found.append(_of(made[key], np.searchsorted(store.rows, half.rows)))
    return found[0], found[1], decided


def _fitted(transform: Transform, fit: Resize) -> Transform:
    """Fit images in another way if asked to; the margin that is cut off is the model's alone."""
    return replace(transform, fit=fit, shortest=0) if fit not in {"", transform.fit} else transform


def _of(images: Images, places: np.ndarray) -> Images:
    """Return the images at some places; those in memory as an array again."""
    if np.array_equal(places, np.arange(images.shape[0])):
        return images
    return images[places] if isinstance(images, np.ndarray) else Selected(images, places)


def _without(source: Source, stores: list[EncodedImages], found: list[Survey]) -> Source:
    """Leave out the rows whose images cannot be used."""
    bad = [store.rows[sorted(one.bad)] for store, one in zip(stores, found, strict=True)]
    train, test = bad * 2 if len(bad) == 1 else bad

    def kept(half: Split, rows: np.ndarray) -> np.ndarray:
        return ~np.isin(half.rows, rows)

    left = source.take(kept(source.train, train), kept(source.test, test))
    if not len(left.train) or not len(left.test):
        raise DataError("without images that cannot be used none are left to train or to test on")
    return left


def _sum(found: list[Survey]) -> Survey:
    total = Survey()
    for one in found:
        total.sizes.update(one.sizes)
        total.modes.update(one.modes)
        total.remarks.update(one.remarks)
    return total


def _ranges(source: Source, stores: list[EncodedImages], found: list[Survey]) -> list[Ranges]:
    """Return the range of values of each image to train on, and of each to test on."""
    several = 3 - len(stores)  # halves of one table share its images
    halves = zip((source.train, source.test), stores * several, found * several, strict=True)
    return [one.ranges(np.searchsorted(store.rows, half.rows)) for half, store, one in halves]


def _on_size(looked: Surveyed, train: Transform, test: Transform) -> Decision:
    side, ways = train.size, list(dict.fromkeys([train.way, test.way]))
    left = {(side, side)} if {train.shortest, test.shortest} <= {0, side} else set()
    others = sum(n for size, n in looked.survey.sizes.items() if size not in left)
    text = f"{side}x{side}"
    if others:
        text += f"; the images are {looked.sizes()}: {others:,} are resized "
        text += f"({', to test on '.join(ways)})"
    return Decision("size", text, "image_size, resize")


def _on_channels(survey: Survey, channels: int, is_of_model: bool) -> Decision:
    grey = sum(count for mode, count in survey.modes.items() if mode in GREY)
    colour = survey.modes.total() - grey
    text = f"{channels} ({'grey' if channels == 1 else 'colour'})"
    text += ", as the model takes" if is_of_model else ""
    if grey and colour:
        text += f"; {grey:,} of {grey + colour:,} images are grey"
    elif channels == 1 and colour:
        text += "; colours are left out"
    elif channels == 3 and grey:
        text += "; grey images are repeated"
    return Decision("channels", text, "model" if is_of_model else "channels")


def _counted(found: Mapping[str, int]) -> str:
    ordered = sorted(found.items(), key=lambda one: -one[1])
    rest = sum(count for _, count in ordered[LISTED:])
    text = ", ".join(f"{name} ({count:,})" for name, count in ordered[:LISTED])
    return text + (f" and {len(ordered) - LISTED} other sizes ({rest:,})" if rest else "")
