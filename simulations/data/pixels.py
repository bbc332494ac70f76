"""Pixels as numbers in a table: in nested lists, or in a column for each pixel."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isqrt
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from simulations.data import raw
from simulations.data.images import DataError
from simulations.data.splits import Decision

FEWEST_PIXELS = 16
"""Numbered columns of numbers that may be the pixels of an image."""

ROWS = 1_000
"""Rows that are read at once."""

KEY = "dataset=...(image='...')"


def first_of(table: datasets.Dataset, name: str) -> Any:
    """Return the first value of a column that is none of empty and missing; else None."""
    column = table.with_format("arrow").select_columns(name)
    for start in range(0, len(table), ROWS):
        for value in column[start : start + ROWS].column(0).to_pylist():
            if value:
                return value
    return None


def clear_shape(table: datasets.Dataset, name: str) -> tuple[int, ...]:
    """Return (H, W) or (H, W, 3) of nested lists of numbers; nothing if it is not clear."""
    try:
        shape = np.asarray(first_of(table, name), dtype=np.float64).shape
    except (TypeError, ValueError):
        return ()
    if len(shape) == 1 and shape[0] >= FEWEST_PIXELS and isqrt(shape[0]) ** 2 == shape[0]:
        return (isqrt(shape[0]),) * 2
    if len(shape) == 3 and shape[2] == 1:
        return shape[:2]
    is_clear = len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
    return shape if is_clear and min(shape[:2]) > 1 else ()


def scale_of(halves: Iterable[tuple[datasets.Dataset, Sequence[str]]]) -> tuple[int, str]:
    """Return what to multiply pixels by, one number for all columns of all splits, and say why.

    Floats of which none is above 1 are from 0 to 1; others, and whole numbers, from 0 to 255.
    """
    low, high, is_float = np.inf, -np.inf, False
    for table, names in halves:
        chosen = table.with_format("arrow").select_columns([*names])
        for start in range(0, len(table), ROWS):
            for column in chosen[start : start + ROWS].columns:
                values = column.combine_chunks()
                while pa.types.is_nested(values.type):
                    values = values.flatten()
                is_float |= pa.types.is_floating(values.type)
                found = pc.min_max(values).as_py()
                if found["min"] is not None:
                    low, high = min(low, found["min"]), max(high, found["max"])
    is_share = is_float and high <= 1
    as_what = "floats 0..1" if is_share else "0..255"
    return 255 if is_share else 1, f"all are {low:g}..{high:g} and read as {as_what}"


def from_lists(table: datasets.Dataset, name: str, scale: int) -> datasets.Dataset:
    """Make images of lists of pixels."""
    flat = clear_shape(table, name)

    def picture(row: Mapping[str, Any]) -> dict[str, Any]:
        values = np.asarray(row[name], dtype=np.float64)
        shape = (
            flat if values.ndim == 1 else values.shape[:2] + values.shape[2:3] * (values.ndim > 2)
        )
        return {name: Image.fromarray(_bytes(values.reshape(shape).squeeze(), scale, name))}

    return _mapped(table, picture, name, [name])


def from_columns(
    tables: Sequence[datasets.Dataset],
) -> tuple[list[datasets.Dataset], str, list[Decision]]:
    """Make images of numbered columns that hold a pixel each, as in MNIST's CSV."""
    numbers = _numbered(tables[0])
    for table in tables[1:]:
        if missing := [name for name in numbers if name not in table.features]:
            raise DataError(f"the test split has no column {missing[0]!r} of pixels")
    scale, said = scale_of((table, numbers) for table in tables)
    side, gone = isqrt(len(numbers)), {*numbers, "image"}

    def pictures(batch: pa.Table) -> pa.Table:
        values = np.stack([column.to_numpy() for column in batch.select(numbers).columns], axis=1)
        pixels = _bytes(values, scale, numbers[0]).reshape(-1, side, side)
        kept = batch.select([name for name in batch.column_names if name not in gone])
        return kept.append_column("image", raw.column(pixels))

    found = [_mapped(table, pictures, "image", numbers, is_batched=True) for table in tables]
    text = f"columns {numbers[0]!r} to {numbers[-1]!r} are the pixels of {side}x{side} images"
    return found, "image", [Decision("images", f"{text}; {said}", KEY)]


def _numbered(table: datasets.Dataset) -> list[str]:
    """Return the numbered columns of numbers; DataError if they are no square."""
    features = table.features  # a copy each time
    numbers = [
        name
        for name, one in features.items()
        if re.search(r"\d+$", name)
        and isinstance(one, datasets.Value)
        and one.dtype.startswith(("int", "uint", "float"))
    ]
    if len(numbers) >= FEWEST_PIXELS and isqrt(len(numbers)) ** 2 == len(numbers):
        return numbers
    columns = ", ".join([*features][:20])
    found = f"; {len(numbers)} numbered columns are no square" if len(numbers) > 3 else ""
    raise DataError(
        f"no image column: none of {columns} is of type Image, or holds file contents or rows "
        f"of pixels{found}; name one with image='...', or store images: "
        "datasets.Dataset.cast_column(name, datasets.Image())"
    )


def _bytes(values: np.ndarray, scale: int, where: str) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):
        raise DataError(
            f"pixels in {where!r} must be 0..255, or floats 0..1, got {low:g}..{high:g}"
        )
    return np.rint(values * scale).astype(np.uint8)


def _mapped(
    table: datasets.Dataset,
    picture: Callable[[Any], Any],
    name: str,
    gone: list[str],
    is_batched: bool = False,
) -> datasets.Dataset:
    """Compute a column of images; it lies beside the file that the table was read from."""
    kept = {key: one for key, one in table.features.items() if key not in gone}
    features = datasets.Features({**kept, name: datasets.Image()})
    is_shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        read = table.with_format("arrow") if is_batched else table
        made = read.map(picture, batched=is_batched, remove_columns=gone, features=features)
        return made.with_format(None)
    except (pa.ArrowInvalid, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name!r} holds no images: {error}") from None
    finally:
        if is_shown:
            datasets.enable_progress_bars()
