"""The patches that a selection of tokens has kept, on the images."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from simulations.report.figures import Drawing, drawn, our_style
from simulations.report.marks import LEFT_OUT
from simulations.report.plots import picture_plot
from simulations.report.runs import RunCollection

FILE = "kept_patches.parquet"
MOST_CONFIGURATIONS = 4


def drawings(collection: RunCollection, folder: str) -> list[Drawing]:
    """Draw test images of the first run of some configurations, with the patches kept."""
    found: list[Drawing] = []
    for one in collection.configurations:
        frames = (run.read_table(f"{folder}/{FILE}") for run in one.runs)
        frame = next((frame for frame in frames if frame is not None), None)
        if frame is not None and len(found) < MOST_CONFIGURATIONS:
            found.append(_drawing(frame, one.label, len(found) + 1))
    return found


def _drawing(frame: pd.DataFrame, label: str, number: int) -> Drawing:
    name, cells = f"kept-patches-{number}", composed(frame)
    images, rates = frame["image"].nunique(), frame["rate"].nunique()
    with our_style(name):
        figure = picture(frame)
        caption = "Test images, one of each class; below, what goes on at each rate, by a head of "
        return drawn(
            figure, name, "Patches that go on", f"{caption}{label}.",
            f"{images} test images at {rates} rates, with the patches that go on.",
            frame, picture_plot(cells, _row_names(frame)),
        )  # fmt: skip


def composed(frame: pd.DataFrame) -> NDArray[np.float64]:
    """Return one picture of all: a column for each image, whole above, then a row per rate.

    What does not go on is -1, and the gaps between images are not a number.
    """
    rows = [_strip(frame[frame["rate"] == rate], is_whole=False) for rate in _rates(frame)]
    first = frame[frame["rate"] == _rates(frame)[0]]
    return np.concatenate([_strip(first, is_whole=True), *rows])


def picture(frame: pd.DataFrame) -> Figure:
    """Draw the composed picture."""
    cells, names = composed(frame), _row_names(frame)
    height, width = cells.shape
    figure = Figure(figsize=(7.0, 0.4 + 6.0 * height / width), layout="constrained")
    axis = figure.subplots()
    gray = colormaps["gray"].with_extremes(under=LEFT_OUT)
    axis.imshow(np.ma.masked_invalid(cells), cmap=gray, interpolation="nearest", vmin=0, vmax=1)
    step = height / len(names)
    axis.set_yticks([step * (place + 0.5) for place in range(len(names))], names, fontsize="small")
    axis.set_xticks([])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return figure


def _rates(frame: pd.DataFrame) -> list[float]:
    return sorted(frame["rate"].unique(), reverse=True)


def _row_names(frame: pd.DataFrame) -> list[str]:
    return ["all", *(f"{rate:g}" for rate in _rates(frame))]


def _strip(frame: pd.DataFrame, is_whole: bool) -> NDArray[np.float64]:
    """Return images beside each other, with a gap of one pixel to the right and below."""
    value = frame["value"] if is_whole else frame["value"].where(frame["kept"], -1.0)
    count, height, width = (frame[key].nunique() for key in ("image", "y", "x"))
    ordered = value.to_numpy(dtype=float).reshape(count, height, width)
    gapped = np.pad(ordered, ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    return np.concatenate([*gapped], axis=1)
