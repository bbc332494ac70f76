"""A system: devices, network, server, and what they are in a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

from fl_split.spec_errors import SpecError
from fl_split.specs import parse, stages
from fl_split.tables import Table
from simulations.system.clock import Conditions
from simulations.system.coding import coding
from simulations.system.devices import Devices, Fleet, Mix
from simulations.system.gilbert_elliott import GilbertElliott
from simulations.system.networks import Cell, Network, Rates, Shared
from simulations.system.part import NoSystem, Part
from simulations.system.presence import Awake, Deadline, Dropouts, First, Presence, Sessions
from simulations.system.presets import LTE, LTEM, Fibre, FiveG, NBIoT, Wifi
from simulations.system.server import Server
from simulations.system.traces import Traces

SYSTEM: Table[Any] = Table(
    Part,
    "fl_split.systems",
    {
        "awake": Awake,
        "cell": Cell,
        "deadline": Deadline,
        "devices": Devices,
        "dropouts": Dropouts,
        "fibre": Fibre,
        "first": First,
        "five_g": FiveG,
        "gilbert_elliott": GilbertElliott,
        "lte": LTE,
        "lte_m": LTEM,
        "mix": Mix,
        "nbiot": NBIoT,
        "network": Rates,
        "none": NoSystem,
        "server": Server,
        "sessions": Sessions,
        "shared": Shared,
        "traces": Traces,
        "wifi": Wifi,
    },
)
"""Parts of a system model by name."""

WHO_COUNTS = ("deadline", "first", "dropouts", "presence")
"""Roles of parts that change what is trained."""


@dataclass(frozen=True)
class Timed:
    """What the clock must know of a run beside its task graphs: keys of its experiment."""

    clients: int
    seed: int
    codec: str = "identity()"
    downlink: str = "identity()"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Timed:
        """Take these keys from all of them."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class System:
    """Devices, network and server; what a spec does not name is as by default."""

    devices: Devices | Mix = field(default_factory=Devices)
    network: Network = field(default_factory=Wifi)
    server: Server = field(default_factory=Server)
    pool: Shared | None = None
    deadline: Deadline | None = None
    first: First | None = None
    dropouts: Dropouts | None = None
    presence: Presence | None = None

    @property
    def decides(self) -> str:
        """Name a part that decides who is trained; nothing if there is none."""
        parts = (getattr(self, role) for role in WHO_COUNTS)
        return next((type(part).__name__.lower() for part in parts if part), "")

    def in_round(self, run: Timed, number: int, begin: float) -> tuple[Fleet, Conditions]:
        """Return devices and conditions of all clients of a run, in one round.

        `begin` are the virtual seconds of the rounds before.
        """
        fleet = self.fleet(run.clients, run.seed)
        return fleet, replace(self.conditions(fleet, run, number), begin=begin)

    def fleet(self, clients: int, seed: int) -> Fleet:
        """Return the device of each client of a run."""
        return _fleet(self.devices, clients, seed)

    def conditions(self, fleet: Fleet, run: Timed, number: int) -> Conditions:
        """Return what the system is in a round."""
        return Conditions(
            fleet.flops,
            fleet.of("backward"),
            self.network.roads(run.clients, number, run.seed),
            self.server.speed,
            self.server.cores,
            self.server.queue == "strategy",
            self.pool.rate if self.pool else None,
            codec=coding(run.codec),
            downlink=coding(run.downlink),
        )


@lru_cache(maxsize=8)
def _fleet(devices: Devices | Mix, clients: int, seed: int) -> Fleet:
    """Draw devices once for all rounds."""
    return devices.draw(clients, seed)


def parse_system(spec: str) -> System | None:
    """Build ``"devices(...) | lte() | server(...)"``; None for ``"none"``.

    Raises
    ------
    SpecError
        A part is unknown or wrong, or stands there beside another one of its role.
    """
    found: dict[str, Part] = {}
    for stage in stages(spec):
        part = parse(stage, SYSTEM)
        if part.role in found:
            raise SpecError(f"{spec!r}: {stage} is a second part for {part.role}; keep one")
        found[part.role] = part
    if "pool" in found and isinstance(found.get("network"), Traces | GilbertElliott):
        raise SpecError(f"{spec!r}: roads whose rate changes are not shared; leave out shared")
    if found.pop("none", None):
        if found:
            raise SpecError(f"{spec!r}: none is no part of a system; leave it out")
        return None
    return System(**found)  # type: ignore[arg-type]
