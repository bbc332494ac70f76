"""Networks from a file: what each client's road carries as virtual time goes on."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from pydantic.dataclasses import dataclass as checked

from fl_split.specs import STRICT
from simulations.system.networks import Network, Roads
from simulations.system.part import Stamp, read_table, stamp
from simulations.system.quantities import quantity

COLUMNS = ("time", "client", "up_bps", "down_bps")

NAMED = 5
"""Clients that a message names."""


@dataclass(frozen=True)
class Trace:
    """Rates of one client, bit/s, each from its time to the next one; then it begins anew.

    Attributes
    ----------
    times, rates : list of float
        (m,) from 0, and (m,).
    length : float
        Seconds after which it begins anew: a step more than the last time.
    """

    times: list[float]
    rates: list[float]
    length: float

    def end(self, begin: float, bits: float) -> float:
        """Return when `bits` have been carried that began at `begin`."""
        turns, at = divmod(begin, self.length)
        whole = self._between(0.0, self.length)
        skipped = max(0.0, np.floor((bits - self._between(at, self.length)) / whole))
        turns, bits = turns + skipped, bits - skipped * whole
        while True:
            place = bisect_right(self.times, at) - 1
            until = self.times[place + 1] if place + 1 < len(self.times) else self.length
            carried = self.rates[place] * (until - at)
            if carried >= bits and self.rates[place]:
                return float(turns * self.length + at + bits / self.rates[place])
            bits, at = bits - carried, until
            if at >= self.length:
                turns, at = turns + 1, 0.0

    def _between(self, begin: float, end: float) -> float:
        """Return the bits of a part of the trace."""
        edges = np.clip([*self.times, self.length], begin, end)
        return float((np.diff(edges) * self.rates).sum())


@checked(frozen=True, config=STRICT)
class Traces(Network):
    """Rates measured over time, from a CSV file with columns time, client, up_bps, down_bps.

    A row holds from its time, in seconds, to the client's next one. After a client's last row
    its trace begins anew, a mean step later. Rates may be 0 for a while.

    Parameters
    ----------
    path : str
        The file. Each client of the run must be in it, from time 0.
    latency : str
        Of each message, either way.
    """

    path: str
    latency: str = "0ms"

    paths: ClassVar = ("path",)

    def __post_init__(self) -> None:
        quantity(self.latency, "time")
        _read(Path(self.path), stamp(Path(self.path)))

    def roads(self, clients: int, number: int, seed: int) -> Roads:
        """Return the roads of all clients; ValueError if one is not in the file."""
        found = _read(Path(self.path), stamp(Path(self.path)))
        missing = [client for client in range(clients) if client not in found]
        if missing:
            some = ", ".join(map(str, missing[:NAMED])) + (", ..." if missing[NAMED:] else "")
            raise ValueError(
                f"{self.path}: {len(missing):,} of {clients:,} clients are not in it ({some})"
            )
        none = np.ones(clients)
        latency = np.full(clients, quantity(self.latency, "time"))
        up, down = ([found[client][way] for client in range(clients)] for way in (0, 1))
        return Roads(none, none, latency, up, down)


@lru_cache(maxsize=4)
def _read(path: Path, stamp: Stamp) -> dict[int, tuple[Trace, Trace]]:
    """Read the traces of all clients, up and down."""
    table = read_table(path, COLUMNS)
    return {
        int(str(client)): _traces(path, rows) for client, rows in table.groupby("client", sort=True)
    }


def _traces(path: Path, rows: pd.DataFrame) -> tuple[Trace, Trace]:
    client, times = int(rows["client"].iloc[0]), [float(time) for time in rows["time"]]
    if times[0] != 0 or any(b <= a for a, b in pairwise(times)):
        raise ValueError(f"{path}: times of client {client} must begin at 0 and rise")
    step = times[-1] / (len(times) - 1) if len(times) > 1 else 1.0
    for name in ("up_bps", "down_bps"):
        if not rows[name].any():
            raise ValueError(f"{path}: {name} of client {client} is always 0: it would never end")
    up, down = ([float(rate) for rate in rows[name]] for name in ("up_bps", "down_bps"))
    return Trace(times, up, times[-1] + step), Trace(times, down, times[-1] + step)
