"""Folders of images: a folder per class, above or below folders of splits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from simulations.data.images import DataError
from simulations.data.splits import Decision, kind
from simulations.data.walking import below, is_foreign, is_picture, listed

ABOVE, BELOW = "above", "below"
"""Where folders of splits lie: above those of classes, or below them."""


@dataclass(frozen=True)
class Listing:
    """Files of a folder.

    Attributes
    ----------
    by_class : dict
        By split and class: image files, sorted.
    pictures, loose, foreign, others : list of Path
        All images; those in no folder of a class; those that Pillow does not read; other files.
    splits_are : str
        ABOVE or BELOW the folders of classes; empty if there are none.
    fault : str
        Why the folders are no classes; empty if they are.
    """

    place: Path
    by_class: dict[str, dict[str, list[Path]]]
    pictures: list[Path]
    others: list[Path]
    splits_are: str
    fault: str
    loose: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Names of the classes of all splits, sorted."""
        return sorted({name for split in self.by_class.values() for name in split})


def listing(place: Path) -> Listing:
    """List a folder and sort its images by split and class."""
    files = sorted(below(place), key=str)
    pictures = [file for file in files if is_picture(file)]
    foreign = [file for file in files if is_foreign(file)]
    others = [file for file in files if not (is_picture(file) or is_foreign(file))]
    root = _root(place, pictures)
    parts = {path: path.relative_to(root).parts for path in pictures}
    where = _splits(list(parts.values()))
    fault = _fault(list(parts.values()), where)
    found = Listing(place, {}, pictures, others, where, fault, foreign=foreign)
    for path, (*folders, _) in parts.items():
        split = "train"
        if where == ABOVE and folders:
            split, *folders = folders
        elif where == BELOW:
            split = folders.pop(1)
        if folders:
            found.by_class.setdefault(split, {}).setdefault(folders[0], []).append(path)
        else:
            found.loose.append(path)
    return found


def _splits(parts: Sequence[tuple[str, ...]]) -> str:
    """Say where folders of splits lie; with one to train on above classes, all above are splits."""
    deep = [one for one in parts if len(one) > 2]
    tops = {one[0] for one in parts if len(one) > 1}
    if any(kind(one[0]) == "train" for one in deep) or (deep and all(map(kind, tops))):
        return ABOVE
    kinds = {kind(one[1]) for one in deep}
    return BELOW if len(deep) == len(parts) and "train" in kinds and "" not in kinds else ""


def _fault(parts: Sequence[tuple[str, ...]], where: str) -> str:
    """Say why folders are no classes, and what to do."""
    tops = sorted({one[0] for one in parts if len(one) > 1})
    deep = [one for one in parts if len(one) > 2]
    if where == BELOW and all(len(one) > 3 for one in parts):
        first = "/".join(parts[0][:3])
        return f"folders of splits lie between others, as {first!r}; read one of {listed(tops)}"
    if not where and len(tops) > 1 and all(map(kind, tops)):
        return (
            f"the folders {listed(tops)} are splits and hold no folders of classes; make a folder "
            "for each class in them, or a table of file names and labels beside them"
        )
    inner = {kind(one[1]): one for one in deep}
    if not where and "train" in inner and {"test", "validation"} & {*inner}:
        return (
            f"some classes hold folders of splits, as {'/'.join(inner['train'][:2])!r}, and others "
            "do not, or hold other folders too; put all images as train/CLASS and test/CLASS"
        )
    return ""


def by_class(
    found: Listing, tables: Sequence[Path]
) -> tuple[dict[str, datasets.Dataset], list[Decision]]:
    """Return a table of paths and classes for each split; classes are sorted by name.

    Splits are called as the library calls them where their names mean that, and no other's does
    too: train, test, validation. `tables` are files that could have been read instead.

    Raises
    ------
    DataError
        The folders are no classes.
    """
    if found.fault:
        raise DataError(f"{str(found.place)!r}: {found.fault}")
    splits = {}
    for split, classes in found.by_class.items():
        names = sorted(classes)
        rows = sorted(
            ((str(path), names.index(name)) for name, paths in classes.items() for path in paths)
        )
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
        )
        table = {"image": [path for path, _ in rows], "label": [label for _, label in rows]}
        splits[_called(split, found)] = datasets.Dataset.from_dict(table, features)
    return splits, [*_said(found, tables)]


def _said(found: Listing, tables: Sequence[Path]) -> Iterator[Decision]:
    """Say which folders are splits, and what is left out."""
    folders = [name for name in found.by_class if name != _called(name, found)]
    if folders or found.splits_are == BELOW:
        where = ", below those of classes" if found.splits_are == BELOW else ""
        shown = ", ".join(map(repr, folders or found.by_class))
        yield Decision("splits", f"folders {shown}{where}")
    if found.loose:
        text = f"{len(found.loose):,} images in no folder of a class are left out"
        yield Decision("files", f"{text}: {listed(found.loose)}", is_warning=True)
    places = {path.parent for path in found.pictures}
    if twice := len(places) - len({os.path.realpath(place) for place in places}):
        text = f"{twice:,} folders are links to others that are read too: their images count twice"
        yield Decision("files", text, is_warning=True)
    if tables:
        text = f"classes are the names of folders; not read: {listed(tables)}"
        key = f"dataset=local(path='{tables[0]}')"
        yield Decision("files", text, key, is_warning=True)
    rest = [file for file in found.others if file not in tables]
    if rest:
        yield Decision("files", f"{len(rest):,} files are no images: {listed(rest)}")


def _called(split: str, found: Listing) -> str:
    alike = [name for name in found.by_class if kind(name) == kind(split)]
    return kind(split) if found.splits_are and kind(split) and len(alike) == 1 else split


def _root(place: Path, pictures: Sequence[Path]) -> Path:
    """Step down through folders that hold one folder and nothing else, as archives have them."""
    if not pictures:
        return place
    common = Path(os.path.commonpath([str(path.parent) for path in pictures]))
    inside = {path.relative_to(common).parts for path in pictures}
    is_flat = all(len(parts) == 1 for parts in inside)
    return common.parent if is_flat and common != place else common if not is_flat else place
