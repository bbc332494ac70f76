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
    decisions: list[Decision] = []
    found = {role: _by_split(names, role, wish, decisions) for role, wish in wanted.items()}
    images, labels = found["image"], found["label"]
    if "train" not in images or "train" not in labels:
        missing = [wish for role, wish in wanted.items() if wish and not found[role]]
        raise DataError(
            f"{str(place)!r} has the arrays {', '.join(names)}; it needs two called images and "
            "labels, or x_train and y_train, and perhaps x_test and y_test"
            + (f"; none is called {missing[0]!r}" if missing else "")
        )
    whole = {split: (images[split], labels[split]) for split in images if split in labels}
    used = {name for both in whole.values() for name in both}
    halves = [name for name in (*images.values(), *labels.values()) if name not in used]
    if rest := [name for name in names if name not in used]:
        why = f"; {listed(halves)} without the other half" if halves else ""
        text = f"arrays that are not read: {listed(rest)}{why}"
        decisions.append(Decision("files", text, is_warning=bool(halves)))
    return whole, decisions


def _by_split(names: list[str], role: str, wish: str, decisions: list[Decision]) -> dict[str, str]:
    """Return the array of a role for each split, all called alike where they can be."""
    alike = [name for name in names if _is(name, role, wish)]
    found: dict[str, str] = {}
    base = ""
    for split in sorted({*map(_split, alike)}, key=lambda name: name != "train"):
        several = [name for name in alike if _split(name) == split]
        # As of the training split; "labels" before "label_names".
        several.sort(key=lambda name: (_base(name) != base, len(_words(_base(name)))))
        found[split], said = chosen(several, f"{role}s", "array", f"dataset=...({role}='...')")
        base = base or _base(found[split])
        decisions += [said] if len(several) > 1 else []
    return found


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
