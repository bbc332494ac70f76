"""Arrays of images and labels in a file of NumPy's."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import numpy as np

from simulations.data.candidates import chosen
from simulations.data.images import DataError
from simulations.data.memory import rows_of
from simulations.data.splits import Decision, kind
from simulations.data.walking import listed

WORDS = {
    "image": frozenset({"x", "image", "images", "data", "pixels"}),
    "label": frozenset({"y", "label", "labels", "target", "targets"}),
}
"""Words in names of arrays of images, and of labels."""


def read(place: Path, image: str, label: str) -> tuple[dict[str, datasets.Dataset], list[Decision]]:
    """Read arrays, as x_train and y_train, or test_images, test_labels.

    `image` and `label` name arrays, with or without the word that tells the split.

    Raises
    ------
    DataError
        The file cannot be read, or holds no images and labels to train on.
    """
    try:
        with np.load(place, allow_pickle=False) as arrays:
            pairs, decisions = _pairs(arrays.files, place, {"image": image, "label": label})
            found = {
                split: rows_of(arrays[images], _flat(arrays[labels], labels))
                for split, (images, labels) in pairs.items()
            }
    except DataError:
        raise
    except Exception as error:  # of zip files, of NumPy, of the system
        raise DataError(f"cannot load {str(place)!r}: {error}") from None
    return found, decisions


def _pairs(
    names: list[str], place: Path, wanted: dict[str, str]
) -> tuple[dict[str, tuple[str, str]], list[Decision]]:
    """Return the arrays of images and labels of each split; say what else is there."""
    found: dict[str, dict[str, str]] = {}
    decisions = []
    for role, wish in wanted.items():
        alike = [name for name in names if _is(name, role, wish)]
        if not alike:
            raise DataError(
                f"{str(place)!r} has the arrays {', '.join(names)}; it needs two called images and "
                "labels, or x_train and y_train, and perhaps x_test and y_test"
                + (f"; none is called {wish!r}" if wish else "")
            )
        base = ""
        for split in sorted({_split(name) for name in alike}, key=lambda name: name != "train"):
            several = [name for name in alike if _split(name) == split]
            several.sort(key=lambda name: _base(name) != base)  # as of the training split
            name, said = chosen(several, f"{role}s", "array", f"dataset=...({role}='...')")
            base = base or _base(name)
            found.setdefault(split, {})[role] = name
            decisions += [said] if len(several) > 1 else []
    whole = {
        split: (both["image"], both["label"]) for split, both in found.items() if len(both) == 2
    }
    if "train" not in whole:
        raise DataError(
            f"{str(place)!r} has the arrays {', '.join(names)}; it needs images and labels to "
            "train on, as x_train and y_train"
        )
    halves = [name for split, both in found.items() if split not in whole for name in both.values()]
    used = {name for both in whole.values() for name in both}
    rest = [name for name in names if name not in used]
    if rest:
        why = f"; {listed(halves)} without the other half" if halves else ""
        text = f"arrays that are not read: {listed(rest)}{why}"
        decisions.append(Decision("files", text, is_warning=bool(halves)))
    return whole, decisions


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def _split(name: str) -> str:
    return kind(name) or "train"


def _base(name: str) -> str:
    """Return the name without the words that tell its split."""
    return "_".join(word for word in _words(name) if not kind(word))


def _is(name: str, role: str, wish: str) -> bool:
    if wish:
        return wish == name or _base(wish) == _base(name)
    return bool(WORDS[role] & {*_words(name)})


def _flat(labels: np.ndarray, name: str) -> np.ndarray:
    """Return labels (n,), or (n, k) if there are several numbers per image."""
    if not labels.ndim:
        raise DataError(f"array {name!r} holds one value; it needs a label for each image")
    return labels.reshape(-1) if labels.shape == (len(labels), 1) else labels
