"""The control that sends no smashed data: the image itself, as a JPEG or WebP file."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fl_split.exchange.whole import predict
from simulations.data.samples import Samples
from simulations.inference.latency import Latency
from simulations.inference.trained import Trained
from simulations.inference.ways import ROWS, answer_bytes

Form = Literal["JPEG", "WEBP"]
FORMS: tuple[Form, ...] = ("JPEG", "WEBP")
QUALITIES = (1, 5, 10, 25, 50, 75, 95)


@dataclass(frozen=True)
class Files:
    """What N test images give and cost as files.

    Attributes
    ----------
    rows : list of dict
        Of a table, one for each format and quality.
    right, sizes : array
        (2, Q, N) of formats and qualities, the lowest first: right answers, and bytes.
    """

    rows: list[dict[str, Any]]
    right: NDArray[np.bool_]
    sizes: NDArray[np.int64]

    def within(self, budget: float) -> tuple[float, int]:
        """Return the accuracy of files with a mean of at most `budget` bytes, and what is left out.

        Of each format the highest quality counts that keeps it, and of both the better one. If
        none does, all images are sent as their smallest files, but for those, counted, of which
        that has more bytes: they are wrong.
        """
        found = []
        for right, sizes in zip(self.right, self.sizes, strict=True):
            fitting = np.flatnonzero(sizes.mean(axis=1) <= budget)
            is_small = sizes.min(axis=0) <= budget
            if len(fitting):
                found.append((float(right[fitting[-1]].mean()), 0))
            else:
                smallest = right[sizes.argmin(axis=0), np.arange(len(is_small))]
                found.append((float((smallest & is_small).mean()), int((~is_small).sum())))
        return max(found, key=lambda pair: (pair[0], -pair[1]))


def files(trained: Trained, latency: Latency | None) -> Files:
    """Send each test image as a file, in every format and quality.

    The server decodes it and runs the whole model; what coding a file takes is not counted.
    Images of more than 8 bits are cut to 8.
    """
    rows, parts = list[dict[str, Any]](), []
    for form, quality in product(FORMS, QUALITIES):
        right, sizes = _sent(trained, form, quality)
        parts.append((right, sizes))
        row = {"policy": f"{form} {quality}", "accuracy": right.mean(), "sent": 1.0}
        rows.append({**row, **_costs(trained, sizes, latency)})
    every_right, every_size = (
        np.stack(one).reshape(len(FORMS), len(QUALITIES), -1) for one in zip(*parts, strict=True)
    )
    return Files(rows, every_right, every_size)


def _costs(trained: Trained, sizes: NDArray[np.int64], latency: Latency | None) -> dict[str, float]:
    """Return means over images (N,) that are files of such sizes."""
    flops = trained.head.forward_flops(1) + trained.tail.forward_flops(1, trained.head.most_sent)
    answer = answer_bytes(trained.test.num_classes)
    found = {
        "bytes_up": float(sizes.mean()),
        "bytes_down": float(answer),
        "device_flops": 0.0,
        "server_flops": float(flops),
    }
    if latency is None:
        return found
    nothing, one = np.zeros_like(sizes), np.ones_like(sizes)
    owner = np.arange(len(sizes)) % trained.experiment.clients
    work = nothing, flops * one, sizes, answer * one
    seconds, joules = latency.of(*work, one.astype(bool), owner)
    return {**found, "seconds": float(seconds.mean()), "joules": float(joules.mean())}


def _sent(
    trained: Trained, form: Form, quality: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return whether the answer on each test image (N,) is right, and the bytes of its file."""
    samples, rows = trained.test, np.arange(len(trained.test.labels))
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
    return torch.cat(right).numpy(), np.array(sizes)


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
