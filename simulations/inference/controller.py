"""The contract of a controller: it sends every image, and chooses in which setting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from scipy.optimize import linprog

from simulations.inference.bench import Bench
from simulations.inference.policy import AllSent, Decisions, Policy
from simulations.inference.settings import Choices, Integers, Numbers
from simulations.inference.ways import Ways


class Chooser(ABC):
    """A controller that has been fitted.

    Attributes
    ----------
    policy : Policy
        The controller, with what was fitted.
    flops : int or array
        Operations of the device to choose for one image, or (S,) by the setting that is chosen.
    notes : sequence of str
        What readers of the table must know.
    """

    policy: Policy
    flops: int | Integers = 0
    notes: Sequence[str] = ()

    @abstractmethod
    def choose(self, choices: Choices) -> Integers:
        """Return settings (N,) of images, which are served slot after slot."""

    @abstractmethod
    def controls(self, choices: Choices, settings: Integers) -> dict[str, Numbers]:
        """Return, by name, how likely (S, N) each setting is under what it is compared with.

        `settings` (N,) are those that were chosen. Controls are fitted to held-out images.
        """


class Controller(Policy):
    """Sends every image from the cut, and chooses in which setting."""

    needs_exits: ClassVar[bool] = False

    def decide(self, ways: Ways) -> Decisions:
        """Send all from the cut."""
        return AllSent().decide(ways)

    @abstractmethod
    def fit(self, bench: Bench) -> Chooser:
        """Fit to held-out images.

        Raises
        ------
        ValueError
            No setting is allowed.
        """


def optimum(accuracy: Numbers, cost: Numbers, share: Numbers, rate: float) -> Numbers:
    """Return the mixtures (S, K) of settings that are most accurate at a mean cost up to `rate`.

    Tables (S, K) are of S settings in K states, of which each comes with a `share` (K,). The
    exact optimum, by a linear programme. Of one state it is the best random mixture of
    constants: a point of the upper hull.

    Raises
    ------
    ValueError
        No mixture is so cheap.
    """
    settings, states = cost.shape
    per_state = np.tile(np.eye(states), settings)
    found = linprog(
        -(accuracy * share).ravel(),
        A_ub=[(cost * share).ravel()],
        b_ub=[rate],
        A_eq=per_state,
        b_eq=np.ones(states),
        bounds=(0, 1),
    )
    if found.x is None:
        raise ValueError(f"no mixture of settings costs as little as {rate:g}")
    return np.asarray(found.x.reshape(settings, states))


def one_hot(number: int, settings: int, images: int) -> Numbers:
    """Return the mixture (S, N) that is always one setting."""
    return np.repeat(np.eye(settings)[:, [number]], images, axis=1)
