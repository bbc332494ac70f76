"""Columns: where the images and the labels of a table are, in whatever form they are written."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets
from PIL import Image

from simulations.data.candidates import IMAGES, LABELS, chosen, usual
from simulations.data.images import DataError
from simulations.data.pixels import KEY, clear_shape, first_of, from_columns, from_lists, scale_of
from simulations.data.splits import Decision


def image_columns(
    tables: Sequence[datasets.Dataset], wanted: str
) -> tuple[list[datasets.Dataset], str, list[Decision]]:
    """Find the column of images of all splits; convert it where it holds them in another form.

    The first split decides which column, all together decide which numbers are black and white.

    Raises
    ------
    DataError
        No column `wanted`, or none that holds images in a form whose shape is clear.
    """
    features = tables[0].features
    if wanted:
        found = [wanted]
    else:
        found = [name for name, one in features.items() if isinstance(one, datasets.Image)]
        found = found or [name for name, one in features.items() if _form(tables[0], name, one)]
        found = [*dict.fromkeys([*usual(found, IMAGES), *found])]
    if not found:
        return from_columns(tables)
    name, text = chosen(found, "images", "column", KEY)
    forms = [_form_of(table, name) for table in tables]
    lists = [table for table, form in zip(tables, forms, strict=True) if form == "lists"]
    scale, said = scale_of((table, [name]) for table in lists) if lists else (1, "")
    made = [
        from_lists(table, name, scale) if form == "lists" else _cast(table, name) if form else table
        for table, form in zip(tables, forms, strict=True)
    ]
    read = ", ".join(filter(None, [forms[0] and f", read from {forms[0]}", said]))
    return made, name, [replace(text, text=text.text + read)]


def _form_of(table: datasets.Dataset, name: str) -> str:
    """Say in which form a column holds images, nothing if as images; DataError if in none."""
    features = table.features
    if name not in features:
        raise DataError(f"no column {name!r} for image; columns: {', '.join(features)}")
    if isinstance(features[name], datasets.Image):
        return ""
    form = _form(table, name, features[name])
    if not form:
        raise DataError(
            f"column {name!r} holds no images; columns: {', '.join(features)}. It may hold "
            "file contents, {bytes, path}, or rows of pixels (H, W) or (H, W, 3)"
        )
    return form


def label_column(table: datasets.Dataset, wanted: str, image: str) -> tuple[str, list[Decision]]:
    """Find the column of labels: the one named, or of type ClassLabel, or usually so called.

    Raises
    ------
    DataError
        There is none.
    """
    features = table.features
    if wanted:
        if wanted not in features:
            raise DataError(f"no column {wanted!r} for label; columns: {', '.join(features)}")
        found = [wanted]
    else:
        known = usual([name for name in features if name != image], LABELS)
        typed = [name for name, one in features.items() if _has_classes(one)]
        found = [*dict.fromkeys([*usual(typed, LABELS), *typed, *known])]
    if not found:
        others = [name for name in features if name != image]
        raise DataError(
            f"no label column: none of {', '.join(others) or 'no columns'} is of type ClassLabel "
            f"or called {', '.join(LABELS)}; name one with label='...'"
        )
    name, text = chosen(found, "labels", "column", "dataset=...(label='...')")
    return name, [text]


def _has_classes(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature)
    return isinstance(feature, datasets.ClassLabel) or isinstance(inner, datasets.ClassLabel)


def _form(table: datasets.Dataset, name: str, feature: Any) -> str:
    """Say in which form a column that is not of type Image holds images; nothing if in none."""
    if isinstance(feature, Mapping) and {*feature} <= {"bytes", "path"} and "bytes" in feature:
        return "{bytes, path}"
    if isinstance(feature, datasets.Value) and feature.dtype in {"binary", "large_binary"}:
        return "file contents" if _is_image(first_of(table, name) or b"") else ""
    if isinstance(feature, datasets.List | datasets.LargeList):
        return "lists" if clear_shape(table, name) else ""
    return ""


def _is_image(contents: bytes) -> bool:
    try:
        Image.open(io.BytesIO(contents))
    except Exception:  # each image format fails in its own way
        return False
    return True


def _cast(table: datasets.Dataset, name: str) -> datasets.Dataset:
    feature = table.features[name]
    if isinstance(feature, datasets.Value) and feature.dtype == "large_binary":
        table = table.cast_column(name, datasets.Value("binary"))
    return table.cast_column(name, datasets.Image())
