"""Calibration: how fast this machine trains the head of an experiment, as a row of devices."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from simulations.runs.setup import Setup
from simulations.system.quantities import told


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes
    ----------
    flops : float
        Operations per second of the forward pass, by the operations that the clock counts.
    backward : float
        Time of backward over forward, for operations in the usual ratio of 2.
    forward_seconds, backward_seconds : float
        Medians, for one batch.
    """

    flops: float
    backward: float
    forward_seconds: float
    backward_seconds: float

    def row(self, name: str) -> str:
        """Return a table of devices.toml; watts are left to be filled in."""
        memory = told(float(psutil.virtual_memory().total), "B").replace(" ", "")
        speed = told(self.flops, "FLOP/s").replace(" ", "")
        return (
            f"[{name}]\n"
            f'title = "measured by fl-split calibrate, threads: {torch.get_num_threads()}"\n'
            f'sustained = "{speed}"\nbackward = {self.backward:.3g}\nmemory = "{memory}"\n'
            "# Fill in what a power meter shows while it computes, sends, receives and waits.\n"
            "compute_watts = 0.0\nsend_watts = 0.0\nreceive_watts = 0.0\nidle_watts = 0.0\n"
            'assumed = ["compute_watts", "send_watts", "receive_watts", "idle_watts"]\n'
        )


def calibrate(
    setup: Setup, repeats: int = 9, clock: Callable[[], float] = time.perf_counter
) -> Calibration:
    """Time forward and backward of the head on one batch, after one that warms up.

    `clock` tells seconds.
    """
    batch = min(setup.experiment.batch_size, len(setup.train.labels))
    pixels, _ = setup.train.batch(np.arange(batch))
    head, forward, backward = setup.head.drawn_at(0.5), [], []
    for _ in range(repeats + 1):
        began = clock()
        tokens = head(pixels)[0]
        middle = clock()
        tokens.sum().backward()
        forward.append(middle - began)
        backward.append(clock() - middle)
    first, second = (statistics.median(one[1:]) for one in (forward, backward))
    operations = head.forward_flops(1)
    # The clock takes operations of a backward pass for twice those of a forward one.
    ratio = second / first * 2 * operations / (head.flops(1) - operations)
    return Calibration(batch * operations / first, ratio, first, second)
