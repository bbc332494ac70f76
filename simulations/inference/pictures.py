"""The control that sends no smashed data: the image itself, as a JPEG or WebP file."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fl_split.exchange.whole import predict
from simulations.data.samples import Samples
from simulations.inference.trained import Trained
from simulations.inference.ways import ROWS

Form = Literal["JPEG", "WEBP"]
QUALITIES = (5, 10, 25, 50, 75, 95)


def files(trained: Trained, rows: NDArray[np.int64]) -> pd.DataFrame:
    """Send each test image as a file, for every format and quality; one row for each of them.

    The server decodes it and runs the whole model. Images of more than 8 bits are cut to 8.
    """
    return pd.DataFrame(
        [
            {"policy": f"{form} {quality}", **_sent(trained, rows, form, quality)}
            for form in ("JPEG", "WEBP")
            for quality in QUALITIES
        ]
    )


def _sent(trained: Trained, rows: NDArray[np.int64], form: Form, quality: int) -> dict[str, Any]:
    samples = trained.test
    right: list[Tensor] = []
    sizes: list[int] = []
    for start in range(0, len(rows), ROWS):
        chosen = rows[start : start + ROWS]
        read, size = zip(*(_round_trip(samples, row, form, quality) for row in chosen), strict=True)
        one = Samples(np.stack(read), samples.labels[chosen], [], samples.num_classes,
                      samples.mean, samples.std)  # fmt: skip
        with torch.no_grad():
            pixels, labels = one.batch(slice(None))
            right.append(predict(trained.head, trained.tail, pixels).argmax(1) == labels)
        sizes += size
    flops = trained.head.forward_flops(1) + trained.tail.forward_flops(1, trained.head.most_sent)
    return {
        "accuracy": float(torch.cat(right).float().mean()),
        "sent": 1.0,
        "bytes_up": float(np.mean(sizes)),
        "device_flops": 0.0,
        "server_flops": float(flops),
    }


def _round_trip(
    samples: Samples, row: int, form: Form, quality: int
) -> tuple[NDArray[np.uint8], int]:
    """Return an image (C, H, W) after its file, and the bytes of the file."""
    stored = np.asarray(samples.pixels[row : row + 1])[0]
    if stored.dtype != np.uint8:
        stored = (stored // 257).astype(np.uint8)
    grey = len(stored) == 1
    picture = Image.fromarray(stored[0] if grey else stored.transpose(1, 2, 0))
    file = BytesIO()
    picture.save(file, format=form, quality=quality)
    size = file.tell()
    read = np.asarray(Image.open(file).convert("L" if grey else "RGB"))
    return (read[None] if grey else read.transpose(2, 0, 1)), size
