"""What decisions make of images: right answers, bytes, operations, seconds, joules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fl_split.metrics import calibration_error
from simulations.inference.latency import Latency
from simulations.inference.policy import Decisions, Policy
from simulations.inference.ways import Ways

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Served:
    """What N images gave and cost, as arrays (N,).

    Attributes
    ----------
    is_known : array
        Whether anybody answered; no answer is wrong.
    answers : array
        (N, C) probabilities of the answer that counts; not numbers without one.
    confidence : array
        The largest of them.
    is_lost : array
        Whether the channel lost what was sent: then the last exit passed answers, if there is one.
    bytes_up, bytes_down : array
        Payload, and the class that comes back.
    uses : array
        Of a channel by numbers that are sent as they are.
    seconds, joules : array
        Of the device, under a system; not numbers without one.
    """

    decisions: Decisions
    right: NDArray[np.bool_]
    is_known: NDArray[np.bool_]
    answers: Numbers
    confidence: Numbers
    is_lost: NDArray[np.bool_]
    bytes_up: NDArray[np.int64]
    bytes_down: NDArray[np.int64]
    uses: NDArray[np.int64]
    device_flops: NDArray[np.int64]
    server_flops: NDArray[np.int64]
    seconds: Numbers
    joules: Numbers

    @property
    def is_sent(self) -> NDArray[np.bool_]:
        """Whether each image is sent."""
        return self.decisions.is_sent

    def images(self, ways: Ways) -> pd.DataFrame:
        """Return one row per image, with its number and its label."""
        place, is_sent, behind, _ = self.decisions
        parts = vars(self).items()
        columns = {key: value for key, value in parts if key not in {"decisions", "answers"}}
        left = np.where(is_sent, "sent from ", "") + np.array(ways.names)[place].astype(object)
        if ways.behind is not None and behind is not None:
            at_exit = [f"server's {name}" for name in ways.behind.names]
            left = np.where(is_sent & (behind >= 0), np.array(at_exit, object)[behind], left)
        known = {"image": np.arange(len(left)), "label": ways.labels}
        return pd.DataFrame({**known, "left": left, **columns})

    def summary(self) -> dict[str, Any]:
        """Return means over images: accuracy, shares, costs, calibration."""
        return {
            "accuracy": float(self.right.mean()),
            "sent": float(self.decisions.is_sent.mean()),
            "lost": int(self.is_lost.sum()),
            "bytes_up": float(self.bytes_up.mean()),
            "bytes_down": float(self.bytes_down.mean()),
            "channel_uses": float(self.uses.mean()) or np.nan,
            "device_flops": float(self.device_flops.mean()),
            "server_flops": float(self.server_flops.mean()),
            "calibration_error": calibration_error(
                self.confidence[self.is_known], self.right[self.is_known]
            ),
            "seconds": float(self.seconds.mean()),
            "joules": float(self.joules.mean()),
        }


def _at(by_place: NDArray[np.int64], *place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return numbers of places (P,), or of places and images (P, N), where images are (N,).

    Of exits and places (E, P) or (E, P, N) where exit and place of images are.
    """
    images = (np.arange(len(place[0])),) if by_place.ndim > len(place) else ()
    return np.asarray(by_place[(*place, *images)])


def serve(ways: Ways, policy: Policy, latency: Latency | None = None) -> Served:
    """Let a policy decide on all images, and add up what each of them takes."""
    if policy.needs_exits and ways.carrying:
        ways = ways.carrying
    place, is_sent, _, deciding = decisions = policy.decide(ways)
    images, local = np.arange(len(place)), ways.local
    served, of_server = _of_server(ways, decisions)
    is_lost = is_sent & np.isnan(served).any(axis=1)
    answers = np.where((is_sent & ~is_lost)[:, None], served, last_exits(ways, place, local))
    known = np.asarray(~np.isnan(answers).any(axis=1))
    likely = np.nan_to_num(answers)
    right = known & (likely.argmax(axis=1) == ways.labels)
    bytes_up = np.where(is_sent, ways.sent_bytes[place, images], 0)
    bytes_down = np.where(is_sent & ~is_lost, ways.answer_bytes, 0)
    uses = np.where(is_sent, ways.sent_uses[place, images], 0)
    device = _at(ways.trunk_flops, place) + policy.needs_exits * ways.exit_flops[place]
    device = device + deciding + is_sent * (place == len(ways.names) - 1) * ways.encoder_flops
    server = np.where(is_sent & ~is_lost, of_server, 0)
    took = (np.full(len(place), np.nan),) * 2
    if latency:
        coding = [is_sent * flops for flops in ways.coding_flops]
        work = device + coding[0], server + ~is_lost * coding[1]
        took = latency.of(*work, bytes_up, bytes_down, is_sent, ways.owner)
    costs = bytes_up, bytes_down, uses, device, server
    return Served(decisions, right, known, answers, likely.max(axis=1), is_lost, *costs, *took)


def _of_server(ways: Ways, decisions: Decisions) -> tuple[Numbers, NDArray[np.int64]]:
    """Return the server's probabilities (N, C) for each image, if it is sent, and operations."""
    place, number = decisions.place, decisions.behind
    images = np.arange(len(place))
    served, behind = ways.served[place, images], ways.behind
    if behind is None or number is None:
        return served, _at(ways.server_flops, place)
    at_exit = (number >= 0)[:, None]
    answers = np.where(at_exit, behind.answers[number, place, images], served)
    return answers, _at(behind.flops, number, place)


def last_exits(ways: Ways, place: NDArray[np.int64], local: Numbers) -> Numbers:
    """Return the probabilities (N, C) of the last exit that each image has passed."""
    passed = [np.flatnonzero(ways.has_exit[: number + 1]) for number in range(len(ways.names))]
    last = np.array([one[-1] if len(one) else number for number, one in enumerate(passed)])
    return np.asarray(local[last[place], np.arange(len(place))])
