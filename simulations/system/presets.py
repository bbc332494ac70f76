"""Networks that people name, with the source of each number; places and dates matter.

Latency is one way; where a source gives a round trip, it is half of that.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from simulations.system.networks import Rates


@dataclass(frozen=True, config=STRICT)
class Fibre(Rates):
    """A fixed line in a country with much fibre.

    Rates: medians of the U.A.E., first quarter of 2024 (Ookla, 2024-06-03). Latency: half of
    10 ms, the world's fixed lines in November 2022 (Ookla, by tele.net.in).
    """

    up: str = "124.37Mbit/s"
    down: str = "270.91Mbit/s"
    latency: str = "5ms"


@dataclass(frozen=True, config=STRICT)
class Wifi(Rates):
    """A wireless network at home behind a median fixed line.

    Rates: fixed lines of the world, August 2024 (Ookla's Global Index, by datahub.io); the
    wireless part is taken to be no slower. Latency: 5 ms as for fibre, and half of the 20 ms
    that more than half of the packets waited for on a campus's wireless hop.
    """

    up: str = "48.36Mbit/s"
    down: str = "93.99Mbit/s"
    latency: str = "15ms"


@dataclass(frozen=True, config=STRICT)
class LTE(Rates):
    """A phone on LTE.

    Rates: averages of the United Kingdom, October 2022 to March 2023 (Ofcom, Mobile Matters
    2023). Latency: half of the middle of the operators' mean response times, 18.3 to 23.7 ms
    (Ofcom, Mobile Matters 2024), to a near server.
    """

    up: str = "7.6Mbit/s"
    down: str = "29.5Mbit/s"
    latency: str = "10.5ms"


@dataclass(frozen=True, config=STRICT)
class FiveG(Rates):
    """A phone on 5G; sources as for lte."""

    up: str = "14.7Mbit/s"
    down: str = "129.9Mbit/s"
    latency: str = "9.4ms"


@dataclass(frozen=True, config=STRICT)
class LTEM(Rates):
    """A sensor on LTE-M (Cat-M1).

    Rates: what a maker's documentation calls usual (Pycom); the standard's peak is 1 Mbit/s.
    Latency: the middle of 50 to 100 ms (Arduino, Portenta Max Carrier).
    """

    up: str = "375kbit/s"
    down: str = "375kbit/s"
    latency: str = "75ms"


@dataclass(frozen=True, config=STRICT)
class NBIoT(Rates):
    """A sensor on NB-IoT (Cat-NB1).

    Up: about 60 kbit/s (Pycom's documentation); small messages reach far less. Down: assumed.
    Latency: 837 ms, measured (Ugwuanyi et al., Electronics 2021, 10, 2224).
    """

    up: str = "60kbit/s"
    down: str = "26kbit/s"
    latency: str = "837ms"
