"""A policy that is learnt by proximal policy optimisation, inspired by REEN (2412.19587)."""

from __future__ import annotations

import random
from dataclasses import dataclass as plain
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.seeds import derive, seeded
from fl_split.specs import STRICT
from simulations.data.cache import Progress
from simulations.inference.latency import Latency
from simulations.inference.policy import Decisions, Learner, Policy
from simulations.inference.ways import Ways

if TYPE_CHECKING:
    from simulations.inference.offloading import Foreseen, Journeys

ENVIRONMENTS = 8
"""Images that are on their way at once in training."""

ROLLOUT = 256
"""Steps of each of them between two updates."""


@plain(frozen=True)
class Learnt(Policy):
    """Takes the likeliest action of a trained policy (5 -> 64 -> 64 -> 3).

    Attributes
    ----------
    spec : Ppo
        What it was learnt by.
    model : PPO
        Of stable-baselines3.
    foreseen : Foreseen
        What held-out images took, which is what it expects of others.
    """

    hands_over: ClassVar[bool] = True

    spec: Ppo
    model: Any
    latency: Latency
    price: float
    foreseen: Foreseen

    def __repr__(self) -> str:
        return f"ppo(steps={self.spec.steps})"

    def decide(self, ways: Ways) -> Decisions:
        """Ask at one exit after the other."""
        from simulations.inference.offloading import ASKING_FLOPS, LEAVE, SEND, journeys

        found = journeys(ways, self.latency, self.price, self.foreseen)
        exits = np.flatnonzero(ways.has_exit)
        last = len(ways.names) - 1
        place, is_sent = np.full(len(ways.labels), last), np.ones(len(ways.labels), dtype=bool)
        is_open, asked = is_sent.copy(), np.zeros(len(place), np.int64)
        for state, here in zip(found.states, exits, strict=True):
            asked += is_open
            action, _ = self.model.predict(state, deterministic=True)
            leaves, sends = is_open & (action == LEAVE), is_open & (action == SEND)
            place[leaves], is_sent[leaves] = here, False
            place[sends] = here if ways.can_send[here] else last
            is_open &= ~(leaves | sends)
        return Decisions(place, is_sent, flops=asked * ASKING_FLOPS)


@dataclass(frozen=True, config=STRICT)
class Ppo(Learner):
    """Leave, go on or send as learnt by PPO on held-out rows (inspired by arXiv 2412.19587).

    The device sees the margins of its last two exits, how many it has passed, and what sending
    is expected to cost at the price of a second. The reward is 1 for a right answer less the
    priced seconds. Needs the extra `rl`.

    Parameters
    ----------
    steps : int
        Decisions in training; whole rollouts of 2048 are made.
    """

    steps: Annotated[int, Field(ge=1)] = 30_000

    def learn(
        self, held: Ways, latency: Latency, price: float, seed: int, progress: Progress
    ) -> Policy:
        """Train on held-out images.

        Raises
        ------
        ValueError
            The extra `rl` is not installed.
        """
        if not all(map(find_spec, ("gymnasium", "stable_baselines3"))):
            raise ValueError(
                "ppo needs gymnasium and stable-baselines3: pip install 'fl-split[rl]'"
            )
        from simulations.inference.offloading import Foreseen, journeys

        foreseen = Foreseen.of(held.carrying or held)
        model = _trained(journeys(held, latency, price, foreseen), self.steps, seed, progress)
        return Learnt(self, model, latency, price, foreseen)


def _trained(found: Journeys, steps: int, seed: int, progress: Progress) -> Any:
    """Train on one thread; leave all global generators as they were."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    from simulations.inference.offloading import HIDDEN, Offloading

    def told(words: dict[str, Any], _: dict[str, Any]) -> bool:
        progress("ppo", words["self"].num_timesteps, steps)
        return True

    threads, before = torch.get_num_threads(), random.getstate()
    torch.set_num_threads(1)
    try:
        with seeded(seed, "policy"):
            model = PPO(
                "MlpPolicy",
                DummyVecEnv([lambda: Offloading(found)] * ENVIRONMENTS),
                n_steps=ROLLOUT,
                policy_kwargs={"net_arch": [*HIDDEN]},
                gamma=1.0,
                seed=derive(seed, "policy") % 2**31,
                device="cpu",
            )
            model.learn(steps, callback=told)
    finally:
        torch.set_num_threads(threads)
        random.setstate(before)
    return model
