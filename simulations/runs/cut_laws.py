"""Where each client's model is cut: the same place for all, a list of places, or a law."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.seeds import generator
from fl_split.spec_errors import nearest
from fl_split.specs import STRICT, canonical, parse
from fl_split.tables import Table
from simulations.system.system import System

Cut = int | str
"""A number of stages, or the name of the client's last one."""

Stages = Annotated[int, Field(ge=1)]


class CutLaw(ABC):
    """Says where the model of each client of a run is cut."""

    @abstractmethod
    def cuts(self, clients: int, seed: int, system: System | None) -> list[Cut]:
        """Return the cut of each client, by partition id.

        Raises
        ------
        ValueError
            The law needs a system that is not there, or does not fit it.
        """


@dataclass(frozen=True, config=STRICT)
class Uniform(CutLaw):
    """Each client is cut after `low` to `high` stages, each number as likely, by the seed."""

    low: Stages
    high: Stages

    def __post_init__(self) -> None:
        if self.high < self.low:
            raise ValueError(f"high must be at least low, {self.low}, got {self.high}")

    def cuts(self, clients: int, seed: int, system: System | None) -> list[Cut]:
        """Draw a number of stages for each client."""
        draw = generator(seed, "cuts")
        return torch.randint(self.low, self.high + 1, (clients,), generator=draw).tolist()


class ByDevice(CutLaw):
    """Each client is cut where its device says: ``by_device(pi5=1, jetson_nano=3)``.

    The devices are those of the key `system`, by the names that its table has. A cut is a number
    of stages, or the name of the client's last one.
    """

    def __init__(self, **cuts: int | str) -> None:
        if not cuts:
            raise ValueError("give cuts of devices, as by_device(pi5=1, jetson_nano=3)")
        for name, cut in cuts.items():
            if not _is_cut(cut):
                raise ValueError(f"{name}: must be a number of stages from 1, or a stage's name")
        self.of = cuts

    def __repr__(self) -> str:
        return f"by_device({', '.join(f'{k}={v!r}' for k, v in self.of.items())})"

    def cuts(self, clients: int, seed: int, system: System | None) -> list[Cut]:
        """Return the cut of each client's device."""
        if system is None:
            raise ValueError("by_device needs devices; give a system, as 'mix(pi5=1, pi4=1)'")
        fleet = system.fleet(clients, seed)
        names = [fleet.devices[kind].name for kind in fleet.kinds.tolist()]
        known = {device.name for device in fleet.devices}
        for name in self.of:
            if name not in known:
                near = nearest(name, known)
                hint = f"; did you mean {near!r}?" if near else ""
                raise ValueError(
                    f"by_device names {name!r}, and the system has {', '.join(sorted(known))}{hint}"
                )
        if missing := sorted({*names} - self.of.keys()):
            raise ValueError(f"by_device says nothing of {', '.join(missing)}; give a cut of each")
        return [self.of[name] for name in names]


CUTS: Table[Any] = Table(CutLaw, "fl_split.cuts", {"by_device": ByDevice, "uniform": Uniform})
"""Laws of cuts by name."""


def checked_cut(cut: Any) -> Any:
    """Return a number of stages, a stage's name, several with commas between, or a law spelt out.

    Raises
    ------
    ValueError
        It is none of these.
    """
    if isinstance(cut, list | tuple):
        found = [part for one in cut for part in [_read(str(one)) if _is_cut(one) else None]]
        if not found or None in found:
            raise ValueError(f"a list of cuts must hold numbers from 1 or names, got {cut!r}")
        return ", ".join(map(str, found)) if len(found) > 1 else found[0]
    if isinstance(cut, str) and "(" in cut:
        parse(cut, CUTS)
        return canonical(cut, CUTS)
    if isinstance(cut, str) and "," in cut:
        return checked_cut([_read(part.strip()) for part in cut.split(",")])
    if _is_cut(cut) and not (isinstance(cut, str) and cut.isdecimal()):
        return cut
    hint = f"; a number has no quotes: {cut}" if isinstance(cut, str) and cut.isdecimal() else ""
    raise ValueError(
        "must be a number of stages from 1, a stage's name, a list of these, or a law, as "
        f"uniform(1, 3), got {cut!r}{hint}"
    )


def cuts_of(cut: Cut, clients: int, seed: int, system: System | None) -> list[Cut]:
    """Return the cut of each client; a list with fewer begins anew: client k has cut k mod length.

    Raises
    ------
    ValueError
        There are more cuts than clients, or as :meth:`CutLaw.cuts`.
    """
    if isinstance(cut, str) and "(" in cut:
        return parse(cut, CUTS).cuts(clients, seed, system)
    listed: Sequence[Cut] = [cut]
    if isinstance(cut, str) and "," in cut:
        listed = [_read(part.strip()) for part in cut.split(",")]
    if len(listed) > clients:
        raise ValueError(f"{len(listed)} cuts for {clients} clients; give one each, or fewer")
    return [listed[client % len(listed)] for client in range(clients)]


def _is_cut(cut: Any) -> bool:
    return (type(cut) is int and cut >= 1) or (isinstance(cut, str) and bool(cut.strip()))


def _read(text: str) -> Cut:
    """Read one of several cuts: digits are a number of stages."""
    return int(text) if text.isdecimal() else text
