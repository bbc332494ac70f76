"""What a device knows of an image before it chooses how to send it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fl_split.models.beside import Trace
from simulations.data.samples import Samples
from simulations.inference.policy import margins
from simulations.inference.trained import Trained
from simulations.inference.ways import ROWS, Ways


@torch.no_grad()
def features(
    trained: Trained, samples: Samples, rows: NDArray[np.int64], ways: Ways, last: int
) -> NDArray[np.float64]:
    """Return mean, deviation and norm of CLS, margin and entropy of each exit: (N, 3 + 2 E).

    CLS is that behind block `last`, exits are those up to it. Of a CNN the mean over positions
    stands for CLS.
    """
    parts = []
    for start in range(0, len(rows), ROWS):
        trace = Trace()
        trained.head(samples.batch(rows[start : start + ROWS])[0], trace)
        tokens = trace.hidden[last - 1].float()
        read = tokens[:, 0] if trained.head.has_attention else tokens.mean(dim=1)
        parts.append(torch.stack([read.mean(1), read.std(1), read.norm(dim=1)], dim=1))
    local = ways.local[ways.has_exit][: exits_up_to(trained, last)]
    entropy = -(local * np.log(local.clip(1e-12))).sum(axis=2)
    return np.column_stack([torch.cat(parts).double().numpy(), margins(local).T, entropy.T])


def features_flops(trained: Trained, last: int) -> int:
    """Return operations of the device on the features of an image: those of the exits."""
    exits = trained.exits
    return exits.forward_flops_of(exits_up_to(trained, last)) if exits else 0


def exits_up_to(trained: Trained, last: int) -> int:
    """Return how many exits there are up to a block."""
    return sum(number <= last for number in trained.exits.after) if trained.exits else 0
