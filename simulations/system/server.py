"""The server: how fast the tail is computed, and whose work comes first."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from simulations.system.part import Part
from simulations.system.quantities import positive, quantity


@dataclass(frozen=True, config=STRICT)
class Server(Part):
    """The server and its queue.

    Parameters
    ----------
    flops : str
        Operations per second of each core, as '1TFLOP/s'.
    cores : int
        Pieces of work that it does at the same time.
    queue : "arrival" or "strategy"
        Serves what came first, or in the order in which the strategy served.
    """

    flops: str = "1TFLOP/s"
    cores: Annotated[int, Field(ge=1)] = 1
    queue: Literal["arrival", "strategy"] = "arrival"

    role: ClassVar = "server"

    def __post_init__(self) -> None:
        positive(self.flops, "speed", "a server of 0 FLOP/s never ends")

    @property
    def speed(self) -> float:
        """Operations per second of a core."""
        return quantity(self.flops, "speed")
