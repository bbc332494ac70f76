"""Who counts: deadlines, the first who come, clients that drop out or are away.

These parts change what is trained, so they belong to a run; a finished one cannot be timed under
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Protocol

import numpy as np
import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from fl_split.specs import STRICT
from simulations.system.part import Part, Stamp, read_table, stamp
from simulations.system.quantities import positive, quantity
from simulations.system.spells import Spells

Probability = Annotated[float, Field(ge=0, lt=1)]

FOREVER = math.inf


@checked(frozen=True, config=STRICT)
class Deadline(Part):
    """Clients whose messages come later are left out of the rest of the round, and named.

    The server goes on when all are there, or at the deadline. What late clients do is counted,
    in bytes and energy: nobody tells them to stop.

    Parameters
    ----------
    after : str
        As '60s'.
    per : "round" or "exchange"
        From the begin of the round, or from when the server sent what the client answers. In
        strategies whose clients wait for each other at every step, all are as late as the
        slowest: take "exchange".
    """

    after: str
    per: Literal["round", "exchange"] = "round"

    role: ClassVar = "deadline"

    def __post_init__(self) -> None:
        positive(self.after, "time", "nobody is there after 0 seconds")

    @property
    def seconds(self) -> float:
        """Of the deadline."""
        return quantity(self.after, "time")


@checked(frozen=True, config=STRICT)
class First(Part):
    """Over-selection: the server goes on with the first who come, and leaves out the others.

    `fraction` of the experiment says how many are asked.

    Parameters
    ----------
    share : float
        Of the clients that a round asks; at least one is waited for.
    """

    share: Annotated[float, Field(gt=0, le=1)]

    role: ClassVar = "first"

    def of(self, asked: int) -> int:
        """Return how many of the clients that a round asks are waited for."""
        return max(1, math.ceil(self.share * asked - 1e-9))  # 0.55 * 20 is a little above 11


@checked(frozen=True, config=STRICT)
class Dropouts(Part):
    """Clients that vanish for the rest of a round; the server notices at once.

    Parameters
    ----------
    round : float
        Probability that a client vanishes before its first step of a round.
    exchange : float
        Probability that it vanishes before any later step, without the cut gradient.
    """

    round: Probability = 0.0
    exchange: Probability = 0.0

    role: ClassVar = "dropouts"

    def probability(self, step: int) -> float:
        """Return that of vanishing before a step."""
        return self.exchange if step else self.round


class Times(Protocol):
    """When one client is there."""

    def at(self, time: float) -> tuple[bool, float]:
        """Tell whether it is there at a time, and until when that lasts."""
        ...


class Presence(Part):
    """Base of what says when clients are there.

    A round asks those who are there when it begins; one who goes away before its message has
    come is left out of the rest of the round. When nobody is there, the server waits.
    """

    role: ClassVar = "presence"

    def times(self, client: int, seed: int) -> Times:
        """Return when a client is there."""
        raise NotImplementedError

    def check(self, clients: int) -> None:
        """Raise ValueError if this does not fit clients 0 to `clients` - 1."""


@checked(frozen=True, config=STRICT)
class Sessions(Presence):
    """Clients are there and away by turns, each for a time drawn from an exponential law.

    Parameters
    ----------
    on, off : str
        Mean times, as '20min'.
    """

    on: str
    off: str

    def __post_init__(self) -> None:
        for time in (self.on, self.off):
            positive(time, "time", "a mean time must be above 0")

    def times(self, client: int, seed: int) -> Times:
        """Return when a client is there."""
        return Spells(
            quantity(self.on, "time"), quantity(self.off, "time"), seed, "sessions", client
        )


@dataclass(frozen=True)
class Listed:
    """Times of one client, from a file: (m,) when it comes, and (m,) when it goes."""

    on: list[float]
    off: list[float]

    def at(self, time: float) -> tuple[bool, float]:
        """Tell whether it is there at a time, and until when that lasts."""
        for on, off in zip(self.on, self.off, strict=True):
            if time < on:
                return False, on
            if time < off:
                return True, off
        return False, FOREVER


COLUMNS = ("client", "on", "off")


@checked(frozen=True, config=STRICT)
class Awake(Presence):
    """Clients are there when a CSV file says so, with columns client, on, off in seconds.

    Clients are numbered from 0. One has as many rows as it has times; without any it is never
    there. A run ends when nobody comes any more.

    Parameters
    ----------
    path : str
        The file.
    """

    path: str

    paths: ClassVar = ("path",)

    def __post_init__(self) -> None:
        _ = self._listed

    def check(self, clients: int) -> None:
        """Refuse clients that there are not."""
        others = [client for client in self._listed if client >= clients]
        if others:
            raise ValueError(
                f"{self.path}: client {others[0]} is none of clients 0 to {clients - 1} "
                f"({len(others):,} such in all); ids begin at 0"
            )

    def times(self, client: int, seed: int) -> Times:
        """Return when a client is there."""
        return self._listed.get(client, Listed([], []))

    @property
    def _listed(self) -> dict[int, Listed]:
        path = Path(self.path)
        return _read(path, stamp(path))


@lru_cache(maxsize=4)
def _read(path: Path, stamp: Stamp) -> dict[int, Listed]:
    table = read_table(path, COLUMNS).sort_values(["client", "on"], kind="stable")
    odd = table[table["client"] % 1 != 0]
    if len(odd):
        raise ValueError(f"{path}: line {odd.index[0] + 2}: client must be a whole number, from 0")
    table["client"] = table["client"].astype(int)
    wrong = table[table["on"] >= table["off"]]
    if len(wrong):
        raise ValueError(f"{path}: line {wrong.index[0] + 2}: off must be above on")
    return {int(str(client)): _listed(path, rows) for client, rows in table.groupby("client")}


def _listed(path: Path, rows: pd.DataFrame) -> Listed:
    on, off = ([float(time) for time in rows[key]] for key in ("on", "off"))
    if np.any(np.array(on[1:]) < np.array(off[:-1])):
        raise ValueError(f"{path}: times of client {int(rows['client'].iloc[0])} overlap")
    gaps = [place for place in range(1, len(on)) if on[place] > off[place - 1]]
    return Listed([on[0], *(on[n] for n in gaps)], [*(off[n - 1] for n in gaps), off[-1]])
