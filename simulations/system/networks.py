"""Networks: how fast clients send and receive, and after how long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from fl_split.seeds import generator
from fl_split.specs import STRICT
from simulations.system.part import Law, Numbers, Part, factors
from simulations.system.quantities import positive, quantity

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Carrier(Protocol):
    """A road whose rate changes as time goes on."""

    def end(self, begin: float, bits: float) -> float:
        """Return when `bits` have been carried that began at `begin`."""
        ...


@dataclass(frozen=True)
class Roads:
    """What each client's road is in a round, as arrays (clients,).

    Attributes
    ----------
    up, down : array
        Bit/s from and to the client.
    latency : array
        Seconds until the first bit arrives, either way.
    traced_up, traced_down : sequence of Carrier
        (clients,) what tells when bits have been carried, instead of `up` and `down`; or empty.
    """

    up: Numbers
    down: Numbers
    latency: Numbers
    traced_up: Sequence[Carrier] = ()
    traced_down: Sequence[Carrier] = ()


class Network(Part):
    """Base of networks."""

    role: ClassVar = "network"

    def roads(self, clients: int, number: int, seed: int) -> Roads:
        """Return the roads of all clients in round `number`."""
        raise NotImplementedError


@checked(frozen=True, config=STRICT)
class Rates(Network):
    """Rates and a latency, equal or drawn.

    Parameters
    ----------
    up, down : str
        From and to the client, as '10Mbit/s'.
    latency : str
        Of each message, either way, as '40ms'.
    law : "equal", "lognormal", "uniform" or "zipf"
        How both rates of a client differ from these.
    spread : float
        Of that law.
    per : "client" or "round"
        Whether a client is drawn once, or anew each round.
    """

    up: str = "10Mbit/s"
    down: str = "50Mbit/s"
    latency: str = "20ms"
    law: Law = "equal"
    spread: Annotated[float, Field(ge=0)] = 0.0
    per: Literal["client", "round"] = "client"

    def __post_init__(self) -> None:
        for rate in (self.up, self.down):
            positive(rate, "rate", "a rate of 0 never ends")
        quantity(self.latency, "time")
        factors(self.law, self.spread, 0, 0, "network")

    def roads(self, clients: int, number: int, seed: int) -> Roads:
        """Return the roads of all clients."""
        place = (number,) if self.per == "round" else ()
        factor = factors(self.law, self.spread, clients, seed, "network", *place)
        return Roads(
            quantity(self.up, "rate") * factor,
            quantity(self.down, "rate") * factor,
            np.full(clients, quantity(self.latency, "time")),
        )


NOISE_DBM_PER_HZ = -174.0
"""Thermal noise at room temperature."""


@checked(frozen=True, config=STRICT)
class Cell(Network):
    """A radio cell: rates by Shannon, W log2(1 + P g / (N0 W)), from each client's distance.

    Path loss is 128.1 + 37.6 log10(d) dB, d in km (3GPP's macro cell). The defaults are the
    radio of GAS (Liao et al., ICML 2025): 25.95 Mbit/s at 0.608 km.

    Parameters
    ----------
    bandwidth_mhz : float
        W of each client.
    client_watts, station_watts : float
        P of clients and, down, of the base station.
    nearest_km, farthest_km : float
        Distances are drawn evenly between these.
    fading : bool
        Whether gains are multiplied by an exponential variable of mean 1 in each round
        (Rayleigh fading).
    latency : str
        Of each message, either way.
    """

    bandwidth_mhz: Positive = 10.0
    client_watts: Positive = 0.2
    station_watts: Positive = 0.2
    nearest_km: Positive = 0.1
    farthest_km: Positive = 1.0
    fading: bool = False
    latency: str = "0ms"

    def __post_init__(self) -> None:
        quantity(self.latency, "time")
        if self.nearest_km > self.farthest_km:
            raise ValueError("nearest_km must not be above farthest_km")

    def snr_db(self, km: Numbers, watts: float) -> Numbers:
        """Return the signal-to-noise ratio at a distance, without fading."""
        noise_dbm = NOISE_DBM_PER_HZ + 10 * math.log10(self.bandwidth_mhz * 1e6)
        loss_db = 128.1 + 37.6 * np.log10(km)
        return np.asarray(10 * math.log10(watts * 1000) - loss_db - noise_dbm)

    def rate(self, km: Numbers, watts: float, gain: Numbers | float = 1.0) -> Numbers:
        """Return bit/s at a distance."""
        snr = gain * 10 ** (self.snr_db(km, watts) / 10)
        return np.asarray(self.bandwidth_mhz * 1e6 * np.log2(1 + snr))

    def _places(self, clients: int, number: int, seed: int) -> tuple[Numbers, Numbers]:
        """Return km and gain of all clients in a round."""
        even = torch.rand(clients, generator=generator(seed, "places"), dtype=torch.float64)
        km = self.nearest_km + (self.farthest_km - self.nearest_km) * even.numpy()
        gain = np.ones(clients)
        if self.fading:
            draw = generator(seed, "network", number)
            gain = -np.log1p(-torch.rand(clients, generator=draw, dtype=torch.float64).numpy())
        return km, gain

    def snrs_db(self, clients: int, number: int, seed: int) -> tuple[Numbers, Numbers]:
        """Return signal-to-noise ratios of all clients in a round, up and down."""
        km, gain = self._places(clients, number, seed)
        both = (self.client_watts, self.station_watts)
        up, down = (self.snr_db(km, watts) + 10 * np.log10(gain) for watts in both)
        return up, down

    def roads(self, clients: int, number: int, seed: int) -> Roads:
        """Return the roads of all clients."""
        km, gain = self._places(clients, number, seed)
        latency = np.full(clients, quantity(self.latency, "time"))
        up, down = (self.rate(km, watts, gain) for watts in (self.client_watts, self.station_watts))
        return Roads(up, down, latency)


@checked(frozen=True, config=STRICT)
class Shared(Part):
    """What all clients together may send, and as much receive, shared out fairly.

    No client gets more than its own road carries; the rest is shared by the others
    (max-min fairness, by water-filling).

    Parameters
    ----------
    pool : str
        As '1Gbit/s'.
    """

    pool: str

    role: ClassVar = "pool"

    def __post_init__(self) -> None:
        positive(self.pool, "rate", "a pool of 0 never ends")

    @property
    def rate(self) -> float:
        """Bit/s."""
        return quantity(self.pool, "rate")


def fair_shares(roads: Numbers, pool: float) -> Numbers:
    """Share `pool` bit/s among roads by water-filling, (n,): the least served first."""
    if roads.sum() <= pool:
        return roads
    order = np.argsort(roads, kind="stable")
    left = pool - np.concatenate([[0.0], np.cumsum(roads[order])[:-1]])
    level = left / np.arange(len(roads), 0, -1)  # what each of the rest gets at most
    limited = roads[order] > level
    return np.minimum(roads, level[np.argmax(limited)])
