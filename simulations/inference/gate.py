"""A gate over settings, for each image one decision, inspired by NaviSplit (arXiv 2406.13086).

NaviSplit trains a gate over bottlenecks by reinforcement learning for a drone that flies on.
Images here do not depend on each other, so the gate is a cost-sensitive classifier: its target is

    argmin_s  CE_s + price * cost_s / mean cost of the dearest setting

with the cross-entropy CE of the server's answer in nats, and bytes or channel uses as cost.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from simulations.inference.bench import Bench
from simulations.inference.controller import Chooser, Controller, one_hot, optimum
from simulations.inference.features import features_flops
from simulations.inference.settings import Choices, Integers, Numbers

LEAST = 1e-6
"""Probability that counts where the answer has less, or where none came."""


def priced(choices: Choices, price: float, whole: float) -> Numbers:
    """Return the loss of each setting on each image, (S, N): nats and priced costs over `whole`."""
    images = np.arange(len(choices.labels))
    of_label = choices.answers[:, images, choices.labels]
    loss = -np.log(np.nan_to_num(of_label).clip(LEAST))
    return np.asarray(loss + price * choices.cost / whole)


class _Classifier(Chooser):
    """Multinomial logistic regression on what the device knows."""

    def __init__(self, policy: Gate, bench: Bench) -> None:
        self.policy, held = policy, bench.held_out
        self.accuracy, cost = held.right.mean(axis=1), held.cost.mean(axis=1)
        costs = priced(held, policy.price, cost.max() or 1.0)
        told = np.broadcast_to(held.telling, held.cost.shape).mean(axis=1)
        self.cost = cost - told  # of constants, which tell no setting
        self.best, target = int(costs.mean(axis=1).argmin()), costs.argmin(axis=0)
        is_one = len(np.unique(target)) == 1
        self.model = None if is_one else _trained(held.features, target, np.ptp(costs, axis=0))
        known = held.features.shape[1]
        of_features = 0  # of exits, which a rule has asked already
        if not bench.rule.needs_exits:
            of_features = features_flops(bench.trained[0], bench.known_after)
        self.flops = bench.again_flops + of_features + 2 * known * len(bench.settings)
        targets = np.bincount(target, minlength=len(costs))
        pairs = zip(bench.names, targets, strict=True)
        cheapest = ", ".join(f"{name} {count}" for name, count in pairs if count)
        self.notes = [f"cheapest settings of held-out rows: {cheapest}"]

    def choose(self, choices: Choices) -> Integers:
        """Ask the classifier."""
        if self.model is None:
            return np.full(len(choices.labels), self.best)
        return np.asarray(self.model.predict(choices.features), np.int64)

    def controls(self, choices: Choices, settings: Integers) -> dict[str, Numbers]:
        """Return the best constant, the dearest, and a random mixture at equal mean cost."""
        images = np.arange(len(settings))
        mean = max(choices.cost[settings, images].mean(), self.cost.min())
        table = self.accuracy[:, None], self.cost[:, None]
        mixed = optimum(*table, np.ones(1), mean)
        count = len(self.cost)
        return {
            "best constant": one_hot(self.best, count, len(images)),
            "random mixture": np.repeat(mixed, len(images), axis=1),
            "dearest": one_hot(int(self.cost.argmax()), count, len(images)),
        }


def _trained(features: Numbers, target: Integers, at_stake: Numbers) -> Any:
    """Fit a classifier; an image counts by what a wrong setting may cost on it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler  # all three take a second to import

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    weight = at_stake / at_stake.mean()
    return model.fit(features, target, logisticregression__sample_weight=weight)


@dataclass(frozen=True, config=STRICT)
class Gate(Controller):
    """Choose the setting of each image by a small classifier (inspired by arXiv 2406.13086).

    It reads margins and entropies of exits, mean, deviation and norm of CLS, and the
    signal-to-noise ratio where there is one; where blocks are told the rate, all at the first
    rate. It is fitted to rows that clients held out.

    Parameters
    ----------
    price : float
        Nats of cross-entropy that the cost of the dearest setting is worth: its mean bytes, or
        over a channel with noise its uses of the channel.
    """

    price: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1

    def fit(self, bench: Bench) -> Chooser:
        """Train the classifier."""
        return _Classifier(self, bench)
