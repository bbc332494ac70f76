"""What policies make of images, side by side: sweeps, frontiers, fits and mixtures."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from simulations.inference.latency import Latency
from simulations.inference.policies import AllLocal, name_of
from simulations.inference.policy import AllSent, Policy
from simulations.inference.served import Served, serve
from simulations.inference.ways import Ways


def histogram(served: Served, ways: Ways) -> dict[str, int]:
    """Count the images that leave at, or are sent from, each place."""
    counted = Counter(served.images(ways)["left"])
    behind = ways.behind.names if ways.behind else []
    names = [*ways.names, *(f"server's {name}" for name in behind)]
    names += [f"sent from {name}" for name in ways.names]
    return {name: counted[name] for name in names if counted[name]}


def mixture(ways: Ways, cost: Any) -> Any:
    """Return the accuracy of a random mixture of all local and all sent, at the same cost.

    The control of every policy: who cannot beat it has learnt nothing of images. `cost` is mean
    bytes, or uses of a channel with noise: a number or an array of them, and so is the accuracy;
    not a number without exits. A cost that is no number is 0.
    """
    if not ways.has_exit.any():
        return cost * np.nan
    local, sent = (serve(ways, policy).summary() for policy in (AllLocal(), AllSent()))
    whole, cost = sent[ways.scarce], np.nan_to_num(cost)
    share = np.minimum(1.0, cost / whole) if whole else 0.0 * cost
    return local["accuracy"] + share * (sent["accuracy"] - local["accuracy"])


def fitted(
    policy: Policy,
    ways: Ways,
    price: float,
    delay_price: float = 0.0,
    latency: Latency | None = None,
) -> Policy:
    """Return the policy of its sweep with the most accuracy less prices times bytes and seconds.

    `ways` are of held-out images. Bytes are a share of those of sending all; of equal policies
    the first counts. Seconds, if they have a price, need `latency`.
    """
    whole = serve(ways, AllSent()).summary()["bytes_up"] or 1.0

    def worth(one: Policy) -> float:
        found = serve(ways, one, latency).summary()
        delay = delay_price * found["seconds"] if delay_price else 0.0
        return float(found["accuracy"] - price * found["bytes_up"] / whole - delay)

    return max(policy.sweep(), key=worth)


def frontier(ways: Ways, policy: Policy, latency: Latency | None = None) -> pd.DataFrame:
    """Return one row for each policy of a sweep, the fewest bytes or uses of a channel first."""
    found = [
        {"policy": name_of(one), **serve(ways, one, latency).summary()} for one in policy.sweep()
    ]
    frame = pd.DataFrame(found)
    frame = frame.sort_values(ways.scarce, kind="stable", na_position="first", ignore_index=True)
    return frame.assign(mixture=mixture(ways, frame[ways.scarce]))


def area(frame: pd.DataFrame, whole: float, key: str = "bytes_up") -> float:
    """Return the mean accuracy of a frontier over a cost from 0 to `whole`.

    `key` is the column of the cost. At each cost the best row counts that needs no more, and
    below all of them the first. Not a number for a single row, which is no frontier.
    """
    if not whole or len(frame) < 2:
        return float("nan")
    ordered = frame.fillna({key: 0.0}).sort_values(key, kind="stable")
    share = np.minimum(ordered[key].to_numpy() / whole, 1.0)
    best = np.maximum.accumulate(ordered["accuracy"].to_numpy())
    widths = np.diff([*share, 1.0])
    return float((best * widths).sum() + best[0] * share[0])
