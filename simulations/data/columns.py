"""Columns: where the images and the labels of a table are, in whatever form they are written."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image

from simulations.data.images import DataError
from simulations.data.splits import Decision

LABELS = ("label", "labels", "class", "target", "category", "y")
"""Names of a column of labels, the first that is there."""

FEWEST_PIXELS = 16
"""Numbered columns of numbers that may be the pixels of an image."""


def image_column(
    table: datasets.Dataset, wanted: str
) -> tuple[datasets.Dataset, str, list[Decision]]:
    """Find the column of images; convert it if it holds them in another form.

    Raises
    ------
    DataError
        No column `wanted`, or none that holds images in a form whose shape is clear.
    """
    features = table.features
    if wanted:
        if wanted not in features:
            raise DataError(f"no column {wanted!r} for image; columns: {', '.join(features)}")
        found = [wanted]
    else:
        found = [name for name, one in features.items() if isinstance(one, datasets.Image)]
        found = found or [name for name in features if _form(table, name)]
    if not found:
        return _of_pixels(table)
    name = found[0]
    text = f"column {name!r}{also_there(found)}"
    if not isinstance(features[name], datasets.Image):
        form = _form(table, name)
        if not form:
            raise DataError(
                f"column {name!r} holds no images; columns: {', '.join(features)}. It may hold "
                "file contents, {bytes, path}, or rows of pixels (H, W) or (H, W, 3)"
            )
        table = _from_lists(table, name) if form == "lists" else _cast(table, name)
        text += f", read from {form}"
    return table, name, [Decision("images", text, "dataset=...(image='...')")]


def label_column(table: datasets.Dataset, wanted: str, image: str) -> tuple[str, list[Decision]]:
    """Find the column of labels: the one named, or of type ClassLabel, or usually so called.

    Raises
    ------
    DataError
        There is none.
    """
    features = table.features
    key = "dataset=...(label='...')"
    if wanted:
        if wanted not in features:
            raise DataError(f"no column {wanted!r} for label; columns: {', '.join(features)}")
        return wanted, [Decision("labels", f"column {wanted!r}", key)]
    usual = [name for name in features if name.lower() in LABELS and name != image]
    typed = [name for name, one in features.items() if _has_classes(one)]
    found = typed or usual
    if not found:
        others = [name for name in features if name != image]
        raise DataError(
            f"no label column: none of {', '.join(others) or 'no columns'} is of type ClassLabel "
            f"or called {', '.join(LABELS)}; name one with label='...'"
        )
    rest = [name for name in dict.fromkeys([*found, *usual]) if name != found[0]]
    text = f"column {found[0]!r}{also_there([found[0], *rest])}"
    return found[0], [Decision("labels", text, key)]


def also_there(found: list[str]) -> str:
    """Name the candidates that were not chosen."""
    others = ", ".join(map(repr, found[1:]))
    return f"; {others} would do too" if others else ""


def _has_classes(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature)
    return isinstance(feature, datasets.ClassLabel) or isinstance(inner, datasets.ClassLabel)


def _form(table: datasets.Dataset, name: str) -> str:
    """Say in which form a column that is not of type Image holds images; nothing if in none."""
    feature = table.features[name]
    if isinstance(feature, Mapping) and {*feature} <= {"bytes", "path"} and "bytes" in feature:
        return "{bytes, path}"
    if isinstance(feature, datasets.Value) and feature.dtype in {"binary", "large_binary"}:
        first = next((one for one in table.with_format("arrow")[:8][name].to_pylist() if one), b"")
        return "file contents" if _is_image(first) else ""
    if isinstance(feature, datasets.List | datasets.LargeList):
        return "lists" if _clear_shape(table, name) else ""
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


def _clear_shape(table: datasets.Dataset, name: str) -> tuple[int, ...]:
    """Return (H, W) or (H, W, 3) of nested lists of numbers; nothing if it is not clear."""
    first = table.with_format("arrow")[:1][name].to_pylist()
    try:
        shape = np.asarray(first[0], dtype=np.float64).shape
    except (IndexError, TypeError, ValueError):
        return ()
    if len(shape) == 1 and shape[0] >= FEWEST_PIXELS and isqrt(shape[0]) ** 2 == shape[0]:
        return (isqrt(shape[0]),) * 2
    if len(shape) == 3 and shape[2] == 1:
        return shape[:2]
    is_clear = len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
    return shape if is_clear and min(shape[:2]) > 1 else ()


def _from_lists(table: datasets.Dataset, name: str) -> datasets.Dataset:
    """Make images of lists of pixels: whole numbers 0..255, or floats 0..1."""
    flat = _clear_shape(table, name)

    def picture(row: Mapping[str, Any]) -> dict[str, Any]:
        values = np.asarray(row[name], dtype=np.float64)
        shape = (
            flat if values.ndim == 1 else values.shape[:2] + values.shape[2:3] * (values.ndim > 2)
        )
        return {name: _picture(values.reshape(shape).squeeze(), name)}

    return _mapped(table, picture, name, [name])


def _picture(values: np.ndarray, where: str) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    if low < 0 or not np.isfinite(high) or high > 255:
        raise DataError(
            f"pixels in {where!r} must be 0..255, or floats 0..1, got {low:g}..{high:g}"
        )
    is_share = high <= 1 and bool((values % 1).any())
    return Image.fromarray(np.rint(values * 255 if is_share else values).astype(np.uint8))


def _of_pixels(table: datasets.Dataset) -> tuple[datasets.Dataset, str, list[Decision]]:
    """Make images of numbered columns that hold a pixel each, as in MNIST's CSV."""
    numbers = [
        name
        for name, one in table.features.items()
        if re.search(r"\d+$", name)
        and isinstance(one, datasets.Value)
        and one.dtype.startswith(("int", "uint", "float"))
    ]
    side = isqrt(len(numbers))
    if len(numbers) < FEWEST_PIXELS or side**2 != len(numbers):
        columns = ", ".join([*table.features][:20])
        found = f"; {len(numbers)} numbered columns are no square" if len(numbers) > 3 else ""
        raise DataError(
            f"no image column: none of {columns} is of type Image, or holds file contents or rows "
            f"of pixels{found}; name one with image='...', or store images: "
            "datasets.Dataset.cast_column(name, datasets.Image())"
        )

    def picture(row: Mapping[str, Any]) -> dict[str, Any]:
        values = np.array([row[name] for name in numbers], dtype=np.float64)
        return {"image": _picture(values.reshape(side, side), numbers[0])}

    found = _mapped(table, picture, "image", numbers)
    text = f"columns {numbers[0]!r} to {numbers[-1]!r} are the pixels of {side}x{side} images"
    return found, "image", [Decision("images", text, "dataset=...(image='...')")]


def _mapped(table: datasets.Dataset, picture: Any, name: str, gone: list[str]) -> datasets.Dataset:
    """Compute a column of images; it lies beside the file that the table was read from."""
    kept = {key: one for key, one in table.features.items() if key not in gone}
    features = datasets.Features({**kept, name: datasets.Image()})
    is_shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return table.map(picture, remove_columns=gone, features=features)
    except pa.ArrowInvalid as error:
        raise DataError(f"{name!r} holds no images: {error}") from None
    finally:
        if is_shown:
            datasets.enable_progress_bars()
