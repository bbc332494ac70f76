"""Devices: how fast clients compute, how much memory they have, what energy they take."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from fl_split.seeds import generator
from fl_split.spec_errors import unknown
from fl_split.specs import STRICT
from simulations.system.part import Law, Numbers, Part, factors
from simulations.system.quantities import quantity, told

TABLE = Path(__file__).with_name("devices.toml")

WATTS = ("compute_watts", "send_watts", "receive_watts", "idle_watts")
"""What a device takes while it computes, sends, receives, and waits."""


@dataclass(frozen=True)
class Device:
    """A kind of device.

    Attributes
    ----------
    flops : float
        Operations per second that it sustains while training.
    backward : float
        Time of a backward pass over that of its forward pass.
    memory : float
        Bytes.
    compute_watts, send_watts, receive_watts, idle_watts : float
        What the whole device takes meanwhile.
    assumed : tuple of str
        Values that no source gives.
    """

    name: str
    title: str
    flops: float
    backward: float
    memory: float
    compute_watts: float
    send_watts: float
    receive_watts: float
    idle_watts: float
    source: str = ""
    assumed: tuple[str, ...] = ()

    @property
    def has_watts(self) -> bool:
        """Whether anybody has said what it takes."""
        return any(getattr(self, key) for key in WATTS)


@dataclass(frozen=True)
class Fleet:
    """The device of each client, as arrays (clients,).

    Attributes
    ----------
    kinds : array
        Places in `devices`.
    flops : array
        Operations per second, with what the law of speeds makes of them.
    """

    devices: tuple[Device, ...]
    kinds: NDArray[np.int64]
    flops: Numbers

    def of(self, attribute: str) -> Numbers:
        """Return a number of each client's device."""
        values = np.array([getattr(device, attribute) for device in self.devices], dtype=float)
        return np.asarray(values[self.kinds])


def known(path: str = "") -> Mapping[str, Device]:
    """Return devices by name: ours, and those of a TOML file of the same form.

    Raises
    ------
    ValueError
        The file is missing or not of this form.
    """
    ours = _read(TABLE)
    return {**ours, **_read(Path(path))} if path else ours


@lru_cache(maxsize=8)
def _read(path: Path) -> dict[str, Device]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"no table of devices in {str(path)!r}: {error}") from None
    return {name: _device(name, values, path) for name, values in table.items()}


def _device(name: str, values: Any, path: Path) -> Device:
    try:
        return Device(
            name,
            str(values.get("title", name)),
            quantity(values["sustained"], "speed"),
            float(values["backward"]),
            quantity(values["memory"], "memory"),
            **{key: float(values[key]) for key in WATTS},
            source=str(values.get("source", "")),
            assumed=tuple(values.get("assumed", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        needed = ", ".join(["sustained", "backward", "memory", *WATTS])
        raise ValueError(
            f"{path}: device {name!r} needs {needed}; {type(error).__name__}: {error}"
        ) from None


@checked(frozen=True, config=STRICT)
class Devices(Part):
    """All clients have one kind of device.

    Parameters
    ----------
    name : str
        Of the table of devices; `fl-split list system` shows it.
    law : "equal", "lognormal", "uniform" or "zipf"
        How speeds differ between clients: see :func:`simulations.system.part.factors`.
    spread : float
        Of that law.
    utilisation : float
        What speeds are multiplied by: `fl-split calibrate` measures it on a machine.
    table : str
        A TOML file with devices of your own.
    """

    name: str = "phone_mid"
    law: Law = "equal"
    spread: Annotated[float, Field(ge=0)] = 0.0
    utilisation: Annotated[float, Field(gt=0)] = 1.0
    table: str = ""

    role: ClassVar = "devices"
    paths: ClassVar = ("table",)

    def __post_init__(self) -> None:
        find(self.name, self.table)
        factors(self.law, self.spread, 0, 0, "device speeds")

    def draw(self, clients: int, seed: int) -> Fleet:
        """Return the device of each client."""
        device = find(self.name, self.table)
        speeds = factors(self.law, self.spread, clients, seed, "device speeds")
        flops = device.flops * self.utilisation * speeds
        return Fleet((device,), np.zeros(clients, dtype=np.int64), flops)


class Mix(Part):
    """Kinds of devices by share: ``mix(pi5=0.5, phone_mid=0.3, jetson_nano=0.2)``.

    Shares are relative to their sum. Numbers of clients are as near to them as whole numbers
    are; who has which is drawn.

    Parameters
    ----------
    table : str
        A TOML file with devices of your own.
    """

    role: ClassVar = "devices"
    paths: ClassVar = ("table",)

    def __init__(self, table: str = "", **shares: float) -> None:
        if not shares:
            raise ValueError("give shares of devices, as mix(pi5=0.5, phone_mid=0.5)")
        for name, share in shares.items():
            find(name, table)
            if isinstance(share, bool) or not isinstance(share, int | float) or share < 0:
                raise ValueError(f"{name}: a share must be a number from 0, got {share!r}")
        if not sum(shares.values()) > 0:
            raise ValueError("shares add up to 0")
        self.table, self.shares = table, shares

    def __repr__(self) -> str:
        return f"mix({', '.join(f'{k}={v!r}' for k, v in self.shares.items())})"

    def draw(self, clients: int, seed: int) -> Fleet:
        """Return the device of each client."""
        devices = tuple(find(name, self.table) for name in self.shares)
        shares = np.array([*self.shares.values()], dtype=float)
        ends = np.floor(np.cumsum(shares) / shares.sum() * clients + 0.5).astype(int)
        kinds = np.repeat(np.arange(len(devices)), np.diff(ends, prepend=0))
        order = torch.randperm(clients, generator=generator(seed, "device kinds")).numpy()
        kinds = kinds[order]
        speeds = np.array([device.flops for device in devices])
        return Fleet(devices, kinds, speeds[kinds])


def check_memory(fleet: Fleet, needed: int | NDArray[np.int64]) -> None:
    """Raise ValueError that names the devices with less than `needed` bytes, of each client."""
    is_small = fleet.of("memory") < needed
    clients = Counter(fleet.devices[kind].name for kind in fleet.kinds[is_small].tolist())
    small = {one.name: one for one in fleet.devices if clients[one.name]}
    if small:
        needed = int(np.broadcast_to(needed, is_small.shape)[is_small].max())
        each = ", ".join(
            f"{name} has {told(device.memory, 'B')} ({clients[name]:,} clients)"
            for name, device in small.items()
        )
        raise ValueError(
            f"a client needs about {told(needed, 'B')} of memory, but {each}; take larger devices, "
            "an earlier cut, a smaller batch_size, or say another memory in a table of your own"
        )


def find(name: str, table: str = "") -> Device:
    """Return a device; ValueError that names the nearest if there is none."""
    found = known(table)
    if name not in found:
        raise ValueError(unknown("device", name, found))
    return found[name]
