"""A controller that keeps a mean cost by a virtual queue, after ASTC (arXiv 2505.17604).

In slot t a client has one image, a signal-to-noise ratio (SNR) and a backlog Z. With accuracy a
and cost c of each setting s, from a table of held-out images at the nearest SNR:

    s_t = argmin_s  -V a_s + Z_t c_s ;    Z_(t+1) = max(0, Z_t + mu (c_t - rate)),  Z_0 = 0

Nothing but V / mu matters. The mean cost exceeds the rate by O(V / mu) over the number of slots,
so V is the largest one that keeps the rate in the last tenth of the slots (the paper's rule).
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from simulations.inference.bench import Bench
from simulations.inference.controller import Chooser, Controller, one_hot, optimum
from simulations.inference.settings import Choices, Integers, Numbers, Table

Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
"""So that V, which is mu rate^2 times some number, is one that a float can hold."""

WEIGHTS = 10.0 ** np.arange(-2, 4.25, 0.25)
"""V that are tried, as multiples of mu rate^2.

At 1 an accuracy of 1 weighs as much as a cost of one rate does at a backlog of mu times the rate.
"""

SNRS = 5
"""Columns of a table, where the SNR changes: quantiles of what clients meet."""


def chosen(backlog: Numbers, table: Table, state: Integers, weight: Numbers | float) -> Integers:
    """Return settings (..., C) for clients with a `backlog` (..., C), at columns `state` (C,).

    `weight` is V, of a shape that fits (...,).
    """
    weighed = np.asarray(weight)[..., None, None] * table.accuracy.T[state]
    worth = backlog[..., None] * table.cost.T[state] - weighed
    return np.asarray(worth.argmin(axis=-1))


def queued(backlog: Numbers, cost: Numbers, rate: float, mu: float, shared: bool) -> Numbers:
    """Return the backlog (..., C) after a slot in which clients have paid `cost` (..., C).

    A `shared` queue is one for all clients: each has the same backlog, of the sum.
    """
    excess = cost - rate
    if shared:
        excess = np.broadcast_to(excess.sum(axis=-1, keepdims=True), excess.shape)
    return np.asarray(np.maximum(0.0, backlog + mu * excess))


def run(
    table: Table, states: Integers, weights: Numbers, rate: float, mu: float, shared: bool
) -> tuple[Numbers, Numbers]:
    """Run controllers with several V over slots whose costs are those of the table.

    `states` (T, C) are columns of the table, `weights` (G,) the V. Returns mean costs of clients
    (T, G), and the last backlogs (G, C).
    """
    clients = np.arange(states.shape[1])
    backlog, paid = np.zeros((len(weights), len(clients))), []
    for state in states:
        settings = chosen(backlog, table, state, weights)
        cost = table.cost[settings, state[clients]]
        backlog = queued(backlog, cost, rate, mu, shared)
        paid.append(cost.mean(axis=1))
    return np.array(paid), backlog


def largest_feasible(paid: Numbers, rate: float) -> int:
    """Return the last column of `paid` (T, G) whose mean over the last tenth keeps the rate.

    If none does, the first: the smallest V.
    """
    last = paid[-max(1, len(paid) // 10) :].mean(axis=0)
    return int(max(np.flatnonzero(last <= rate), default=0))


class _Queues(Chooser):
    """Goes on from the backlogs that the fit has left."""

    policy: Lyapunov

    def __init__(self, policy: Lyapunov, table: Table, states: Integers) -> None:
        weights = np.array([policy.V]) if policy.V else policy.mu * policy.rate**2 * WEIGHTS
        self.how = policy.rate, policy.mu, policy.shared
        paid, backlog = run(table, states, weights, *self.how)
        number = largest_feasible(paid, policy.rate)
        self.policy, self.table = policy, table
        self.weight, self.backlog = weights[number], backlog[number]
        self.share = np.bincount(states.ravel(), minlength=len(table.snrs_db)) / states.size
        last = paid[-max(1, len(paid) // 10) :, number].mean()
        is_free = policy.rate >= float(table.cost.max())
        free = ["the rate is above the dearest setting: there is nothing to keep"] * is_free
        self.notes = [
            *free,
            f"V {self.weight:.3g}; mean cost of the last tenth of {len(paid)} slots, by the table "
            f"of held-out rows: {last:.4g}",
        ]

    def choose(self, choices: Choices) -> Integers:
        """Serve slot after slot; the backlog grows by what an image really costs."""
        states, backlog = self.table.state(choices.snr_db), self.backlog.copy()
        found = np.zeros(len(states), np.int64)
        for slot in range(int(choices.slot.max()) + 1):
            images = np.flatnonzero(choices.slot == slot)
            clients = choices.owner[images]
            settings = chosen(backlog[clients], self.table, states[images], self.weight)
            cost = choices.cost[settings, images]
            backlog[clients] = queued(backlog[clients], cost, *self.how)
            found[images] = settings
        return found

    def controls(self, choices: Choices, settings: Integers) -> dict[str, Numbers]:
        """Return the best constant, random mixture of constants and optimum of the table."""
        table, rate = self.table, self.policy.rate
        costs = table.cost - table.telling
        accuracy, cost = table.accuracy @ self.share, costs @ self.share
        best = int(np.where(cost <= rate, accuracy, -np.inf).argmax())
        images = len(choices.labels)
        found = {}
        if (cost <= rate).any():
            found["best constant"] = one_hot(best, len(cost), images)
            mixed = optimum(accuracy[:, None], cost[:, None], np.ones(1), rate)
            found["random mixture"] = np.repeat(mixed, images, axis=1)
        shares = optimum(table.accuracy, costs, self.share, rate)
        found["optimum of the table"] = shares[:, table.state(choices.snr_db)]
        return found


@dataclass(frozen=True, config=STRICT)
class Lyapunov(Controller):
    """Choose the setting of each image so that a mean cost is kept (arXiv 2505.17604, ASTC).

    A virtual queue grows with what images cost above the rate; the longer it is, the cheaper
    the setting. The table of accuracies and costs is of rows that clients held out.

    Parameters
    ----------
    rate : float
        Mean cost allowed for an image: payload bytes, or over a channel with noise uses of the
        channel per number of the image (k/n).
    V : float, optional
        Weight of accuracy. By default the largest that keeps the rate on held-out rows.
    mu : float
        Growth of the queue. Nothing but V / mu matters.
    shared : bool
        One queue for all clients, which share a spectrum, instead of one for each.
    slots : int
        Of the run that finds V; one image of each client in each.
    """

    rate: Positive
    V: Positive | None = None
    mu: Positive = 1.0
    shared: bool = False
    slots: Annotated[int, Field(ge=10)] = 2000

    def fit(self, bench: Bench) -> Chooser:
        """Measure the table, and find V.

        Raises
        ------
        ValueError
            Not even the cheapest setting keeps the rate.
        """
        snrs = bench.snrs_db(self.slots)
        table = bench.table(np.unique(np.quantile(snrs, (np.arange(SNRS) + 0.5) / SNRS)))
        states = table.state(snrs)
        least = table.cost.min(axis=0)[states].mean()
        if self.rate < least:
            raise ValueError(
                f"lyapunov: the cheapest setting costs {least:.4g} {bench.unit}, and the rate is "
                f"{self.rate:g}; give a higher rate, or cheaper settings"
            )
        return _Queues(self, table, states)
