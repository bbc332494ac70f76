"""What is fitted to held-out images: thresholds, and policies that learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simulations.data.cache import Progress
from simulations.inference.controller import Controller
from simulations.inference.latency import Latency
from simulations.inference.policies import name_of
from simulations.inference.policy import Learner, Policy
from simulations.inference.serving import fitted
from simulations.inference.ways import Ways


class Prices(NamedTuple):
    """In accuracy: of all bytes of sending everything, and of a second; None is no price."""

    bytes: float | None = None
    seconds: float | None = None

    def __bool__(self) -> bool:
        return self.bytes is not None or self.seconds is not None

    def __str__(self) -> str:
        of_bytes = [] if self.bytes is None else [f"price {self.bytes:g}"]
        of_seconds = [] if self.seconds is None else [f"{self.seconds:g} a second"]
        return ", ".join([*of_bytes, *of_seconds])

    def check(self, policies: Sequence[Policy], latency: Latency | None) -> None:
        """Raise ValueError for prices that are none, fit nothing, or are of what nobody knows."""
        for key, price in (("price", self.bytes), ("delay_price", self.seconds)):
            if price is not None and not 0 <= price < np.inf:
                raise ValueError(f"{key} must be 0 or more, got {price:g}")
        if self.bytes is not None and all(isinstance(one, Controller) for one in policies):
            raise ValueError(
                "price fits thresholds; gate has a price of its own, as gate(price=0.1)"
            )
        learner = next((name_of(one) for one in policies if isinstance(one, Learner)), None)
        if learner and self.seconds is None:
            raise ValueError(
                f"{learner} learns what a second is worth; give delay_price, as --delay-price 1"
            )
        if self.seconds is not None and latency is None:
            raise ValueError(
                "delay_price: seconds need devices and a network; give a system, as "
                "system=\"devices('pi5') | lte()\""
            )


def fit(
    policy: Policy,
    held: Ways,
    prices: Prices,
    latency: Latency | None,
    seed: int,
    progress: Progress,
) -> tuple[Policy, str]:
    """Return what a policy becomes, and what is to be told of that."""
    if isinstance(policy, Learner):
        assert latency is not None and prices.seconds is not None  # as Prices.check has seen
        after = policy.learn(held, latency, prices.seconds, seed, progress)
        return after, f"{name_of(after)} has learnt from held-out rows, {prices.seconds:g} a second"
    if len(policy.sweep()) < 2:
        return policy, f"{name_of(policy)}: nothing of it can be fitted"
    after = fitted(policy, held, prices.bytes or 0.0, prices.seconds or 0.0, latency)
    return after, f"{name_of(after)} was fitted to held-out rows, {prices}"
