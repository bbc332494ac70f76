"""Images of your own: arrays, a table of files, and a folder with a folder for each class.

python examples/own_data.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from PIL import Image

import fl_split as fs

COMMON = {"clients": 4, "rounds": 2, "engine": "inline()", "partition": "iid()"}


def bars(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return grey images (n, 16, 16) of lying and standing bars, and which is which."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 60, (count, 16, 16), dtype=np.uint8)
    labels = np.arange(count) % 2
    for image, label, place in zip(images, labels, draw.integers(2, 14, count), strict=True):
        view = image if label else image.T
        view[place - 2 : place + 2] += 150
    return images, labels


def as_files(folder: Path, images: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Write one file per image into a folder per class; return a table of them."""
    rows = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / ("standing", "lying")[label] / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
        rows.append({"image": str(path), "label": path.parent.name})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    images, labels = bars(240)
    found = {"arrays": fs.run(dataset=(images, labels), **COMMON)}
    with TemporaryDirectory() as name:
        table = as_files(Path(name), images, labels)
        found["table"] = fs.run(dataset=table, **COMMON)
        found["folder"] = fs.run(dataset=f"local(path={name!r})", **COMMON)
    for kind, run in found.items():
        print(kind, run.accuracy)
