"""Roads that are good and bad by turns (Gilbert, 1960; Elliott, 1963)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from fl_split.specs import STRICT
from simulations.system.networks import Network, Roads
from simulations.system.quantities import positive, quantity
from simulations.system.spells import Spells


@dataclass(frozen=True)
class Switching:
    """A road with one rate while its spell is on, and another one while it is off; bit/s."""

    spells: Spells
    good: float
    bad: float

    def end(self, begin: float, bits: float) -> float:
        """Return when `bits` have been carried that began at `begin`."""
        while True:
            is_good, until = self.spells.at(begin)
            rate = self.good if is_good else self.bad
            carried = rate * (until - begin)
            if carried >= bits and rate:
                return begin + bits / rate
            bits, begin = bits - carried, until


@checked(frozen=True, config=STRICT)
class GilbertElliott(Network):
    """Each client's road is good and bad by turns, for times drawn from an exponential law.

    Parameters
    ----------
    up, down : str
        From and to the client while the road is good, as '10Mbit/s'.
    bad : float
        What both rates are multiplied by while it is bad; 0 is an outage.
    good_for, bad_for : str
        Mean times, as '10s'.
    latency : str
        Of each message, either way.
    """

    up: str = "10Mbit/s"
    down: str = "50Mbit/s"
    bad: Annotated[float, Field(ge=0, le=1)] = 0.1
    good_for: str = "10s"
    bad_for: str = "2s"
    latency: str = "20ms"

    def __post_init__(self) -> None:
        for rate in (self.up, self.down):
            positive(rate, "rate", "a rate of 0 never ends")
        for time in (self.good_for, self.bad_for):
            positive(time, "time", "a mean time must be above 0")
        quantity(self.latency, "time")

    def roads(self, clients: int, number: int, seed: int) -> Roads:
        """Return the roads of all clients; both directions are good and bad together."""
        none, latency = np.ones(clients), np.full(clients, quantity(self.latency, "time"))
        return Roads(none, none, latency, *_switching(self, clients, seed))


@lru_cache(maxsize=4)
def _switching(
    road: GilbertElliott, clients: int, seed: int
) -> tuple[list[Switching], list[Switching]]:
    """Draw the spells of all clients once for all rounds."""
    means = quantity(road.good_for, "time"), quantity(road.bad_for, "time")
    spells = [Spells(*means, seed, "spells", client) for client in range(clients)]
    rates = (quantity(rate, "rate") for rate in (road.up, road.down))
    up, down = ([Switching(one, rate, road.bad * rate) for one in spells] for rate in rates)
    return up, down
