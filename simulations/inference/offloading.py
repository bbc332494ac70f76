"""Leaving, going on or sending as a Markov decision process, inspired by REEN (2412.19587).

An episode is one held-out image on its way through the exits of a device. At each exit the
device leaves, goes on, or sends the image; whoever goes on at the last exit sends from the cut.
The reward comes at the end: 1 for a right answer, less `price` times seconds. The state holds
what the device can know before it sends; what chance then does is in the reward alone. State,
action and reward are ours: those of the paper were not to be had.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from simulations.inference.latency import Latency
from simulations.inference.policy import Decisions, Policy, margins
from simulations.inference.served import serve
from simulations.inference.ways import Ways

Numbers = NDArray[np.float64]
State = NDArray[np.float32]

LEAVE, GO_ON, SEND = range(3)

HIDDEN = (64, 64)
"""Widths of the hidden layers of the network that decides, of 5 numbers on 3 actions."""

ASKING_FLOPS = 2 * sum(one * other for one, other in pairwise((5, *HIDDEN, 3)))
"""Operations of the network at one exit."""


@dataclass(frozen=True)
class _Everywhere(Policy):
    """Ends every image in one way."""

    place: int
    is_sent: bool
    asked: int
    """Exits at which the network was asked."""

    def decide(self, ways: Ways) -> Decisions:
        """Choose that way."""
        place, is_sent = (np.full(len(ways.labels), one) for one in (self.place, self.is_sent))
        return Decisions(place, is_sent, flops=self.asked * ASKING_FLOPS)


@dataclass(frozen=True)
class Journeys:
    """States and rewards of N images at E exits.

    Attributes
    ----------
    states : array
        (E, N, 5): share of the exits passed, margin, margin at the exit before, growth of the
        margin, and what sending from here is expected to cost more than leaving, in seconds times
        the price.
    left, sent : array
        (E, N) rewards of leaving there, and of sending from there.
    onward : array
        (N,) of going on at the last exit: the cut sends.
    """

    states: State
    left: Numbers
    sent: Numbers
    onward: Numbers


@dataclass(frozen=True)
class Foreseen:
    """What P places are expected to take of an image: means (P,) over held-out images.

    Attributes
    ----------
    bytes_up : array
        Of the payload, if it is sent from there.
    device_flops : array
        Of the blocks up to there, with all exits.
    encoding_flops : array
        Of the device, to encode what is sent from there.
    server_flops : array
        Of the server, to decode and answer what is sent from there; nothing is lost.
    """

    bytes_up: Numbers
    device_flops: Numbers
    encoding_flops: Numbers
    server_flops: Numbers

    @classmethod
    def of(cls, held: Ways) -> Foreseen:
        """Take means over held-out images."""
        places = len(held.names)
        trunk, server = (
            one.reshape(places, -1).mean(axis=1) for one in (held.trunk_flops, held.server_flops)
        )
        encoding = np.full(places, float(held.coding_flops[0]))
        encoding[-1] += np.mean(held.encoder_flops)
        decoding = server + held.coding_flops[1]
        return cls(held.sent_bytes.mean(axis=1), trunk + held.exit_flops, encoding, decoding)

    def seconds(self, ways: Ways, latency: Latency, place: int, is_sent: bool) -> Numbers:
        """Return what images (N,) take if they leave at a place, or are sent from there."""
        more = self.encoding_flops[place], self.server_flops[place], self.bytes_up[place]
        encoding, server, up = (is_sent * np.full(len(ways.labels), one) for one in more)
        device, down = self.device_flops[place] + encoding, np.full(len(up), ways.answer_bytes)
        is_each = np.full(len(up), is_sent)
        return latency.of(device, server, up, is_sent * down, is_each, ways.owner)[0]


def journeys(ways: Ways, latency: Latency, price: float, foreseen: Foreseen) -> Journeys:
    """Work out all states and rewards; where nothing can be sent from an exit, the cut sends."""
    exits, last = np.flatnonzero(ways.has_exit), len(ways.names) - 1
    senders = np.where(ways.can_send, np.arange(len(ways.names)), last)[exits].tolist()

    def end(place: int, is_sent: bool, asked: int) -> Numbers:
        one = serve(ways, _Everywhere(place, is_sent, asked), latency)
        return np.asarray(one.right - price * one.seconds)

    left = np.stack([end(place, False, asked) for asked, place in enumerate(exits.tolist(), 1)])
    sent = np.stack([end(place, True, asked) for asked, place in enumerate(senders, 1)])
    leaving, sending = (
        np.stack([foreseen.seconds(ways, latency, place, is_sent) for place in places])
        for places, is_sent in ((exits.tolist(), False), (senders, True))
    )
    margin = margins(ways.local[exits])
    before = np.concatenate([np.zeros_like(margin[:1]), margin[:-1]])
    passed = np.repeat((1 + np.arange(len(exits)))[:, None] / len(exits), margin.shape[1], axis=1)
    more = price * (sending - leaving)
    states = np.stack([passed, margin, before, margin - before, more], axis=2)
    return Journeys(states.astype(np.float32), left, sent, end(last, True, len(exits)))


class Offloading(gymnasium.Env[State, np.int64]):
    """One image after the other, drawn at random.

    ``reset(options={"image": n})`` takes image n.
    """

    def __init__(self, found: Journeys) -> None:
        self.found = found
        self.observation_space = spaces.Box(-np.inf, np.inf, (found.states.shape[2],), np.float32)
        self.action_space = spaces.Discrete(3)
        self.image = self.exit = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[State, dict[str, Any]]:
        """Begin with an image at the first exit."""
        super().reset(seed=seed)
        drawn = self.np_random.integers(self.found.left.shape[1])
        self.image, self.exit = int((options or {}).get("image", drawn)), 0
        return self.found.states[0, self.image].copy(), {}

    def step(self, action: np.int64) -> tuple[State, float, bool, bool, dict[str, Any]]:
        """Leave, go on or send; returns state, reward, whether it has ended, False, nothing."""
        here = self.exit, self.image
        is_last = self.exit + 1 == len(self.found.left)
        if action == GO_ON and not is_last:
            self.exit += 1
            return self.found.states[self.exit, self.image].copy(), 0.0, False, False, {}
        reward = {
            LEAVE: self.found.left[here],
            GO_ON: self.found.onward[self.image],
            SEND: self.found.sent[here],
        }[int(action)]
        return self.found.states[here].copy(), float(reward), True, False, {}
