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
from simulations.inference.latency import Latency
from simulations.inference.trained import Trained
from simulations.inference.ways import ROWS, Ways

Form = Literal["JPEG", "WEBP"]
QUALITIES = (5, 10, 25, 50, 75, 95)


def files(trained: Trained, ways: Ways, latency: Latency | None) -> pd.DataFrame:
    """Send each test image as a file, for every format and quality; one row for each of them.

    The server decodes it and runs the whole model; what coding a file takes is not counted.
    Images of more than 8 bits are cut to 8.
    """
    return pd.DataFrame(
        [
            {"policy": f"{form} {quality}", **_sent(trained, ways, latency, form, quality)}
            for form in ("JPEG", "WEBP")
            for quality in QUALITIES
        ]
    )


def _sent(
    trained: Trained, ways: Ways, latency: Latency | None, form: Form, quality: int
) -> dict[str, Any]:
    samples, rows = trained.test, np.arange(len(ways.labels))
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
    found = {
        "accuracy": float(torch.cat(right).float().mean()),
        "sent": 1.0,
        "bytes_up": float(np.mean(sizes)),
        "bytes_down": float(ways.answer_bytes),
        "device_flops": 0.0,
        "server_flops": float(flops),
    }
    if latency is None:
        return found
    work = np.zeros(len(rows), dtype=np.int64), np.full(len(rows), flops)
    sent = np.array(sizes), np.full(len(rows), ways.answer_bytes)
    seconds, joules = latency.of(*work, *sent, np.ones(len(rows), dtype=bool), ways.owner)
    return {**found, "seconds": float(seconds.mean()), "joules": float(joules.mean())}


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
