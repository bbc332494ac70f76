"""Answers that are carried along, inspired by REEN (arXiv 2412.19587).

An image that is sent takes the answer q of the last exit with it, and the server, whose own
answer is p, says g p + (1 - g) q. The share g of each place is fitted to held-out images, by the
mean cross-entropy, which is convex in g. REEN learns its recursion in training; what it is
exactly we could not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from fl_split.payload import Payload
from simulations.inference.served import last_exits
from simulations.inference.ways import Probabilities, Ways

LEAST = 1e-6
"""Probability that counts where an answer has less."""


@dataclass(frozen=True)
class Shares:
    """The server's share g (P,) of the answer at each place; where it is 1 nothing is carried."""

    of_server: Sequence[float]

    def carry(self, ways: Ways) -> Ways:
        """Return ways with what images take along, and what becomes of the server's answer."""
        share = np.array(self.of_server)[:, None, None]
        served = share * ways.served + (1 - share) * _carried(ways)
        more = np.where(share[:, 0, 0] < 1, _nbytes(ways.local.shape[2]), 0)
        return replace(
            ways, carrying=replace(ways, served=served, sent_bytes=ways.sent_bytes + more[:, None])
        )

    def told(self, ways: Ways) -> str:
        """Say how much counts at each place from which images are sent."""
        places = zip(ways.names, self.of_server, ways.can_send & _has_passed(ways), strict=True)
        shares = ", ".join(f"{share:.2f} from {name}" for name, share, can in places if can)
        return (
            f"share of the server's answer, the rest is carried, fitted to held-out rows: {shares}"
        )


def fit_shares(held: Ways) -> Shares:
    """Fit the server's share at each place to held-out images that have arrived from there."""
    images = np.arange(len(held.labels))
    of_label = [answers[:, images, held.labels] for answers in (held.served, _carried(held))]
    places = zip(*of_label, held.can_send & _has_passed(held), strict=True)
    return Shares([_share(server, exit) if can else 1.0 for server, exit, can in places])


def _share(server: NDArray[np.float64], carried: NDArray[np.float64]) -> float:
    """Return the share with the least cross-entropy, in hundredths.

    Both are probabilities (N,) of the true classes.
    """
    there = ~np.isnan(server)
    if not there.any():
        return 1.0

    def loss(share: float) -> float:
        mixed = share * server[there] + (1 - share) * carried[there]
        return float(-np.log(mixed.clip(LEAST)).mean())

    return round(float(minimize_scalar(loss, bounds=(0.0, 1.0), method="bounded").x), 2)


def _has_passed(ways: Ways) -> NDArray[np.bool_]:
    """Tell at which places (P,) an image has passed an exit."""
    return np.asarray(np.logical_or.accumulate(ways.has_exit))


def _carried(ways: Ways) -> Probabilities:
    """Return the answers (P, N, C) of the last exit up to each place as they arrive, in fp16."""
    everyone = np.zeros(len(ways.labels), np.int64)
    found = [last_exits(ways, everyone + place, ways.local) for place in range(len(ways.names))]
    sent = np.stack(found).astype(np.float16)
    return np.where(_has_passed(ways)[:, None, None], sent, 0.0).astype(np.float64)


def _nbytes(classes: int) -> int:
    """Return what an answer adds to a payload."""
    answer = torch.zeros(classes, dtype=torch.float16, device="cpu")
    return Payload({}, {"answer": answer}).nbytes - Payload({}).nbytes
