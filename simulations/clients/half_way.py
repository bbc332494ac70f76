"""What a client of a U-shape does and keeps between the messages of an exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from fl_split.exchange.split import pack
from fl_split.exchange.ushape import Targets, conclude
from fl_split.payload import Payload

if TYPE_CHECKING:
    from simulations.clients.client import Client

HALF_WAY = "half-way"
"""Record of ``context.state``: what :class:`HalfWay` holds."""

TARGETS, WEIGHTS, GRADIENT = "targets", "weights", "gradient"


@dataclass
class HalfWay:
    """Targets until the middle's output comes, the end's gradient until the cut gradient comes.

    An exchange is taken whole or not at all: the end waits for the head.
    """

    targets: Targets | None = None
    gradient: Tensor | None = None

    def save(self, state: RecordDict) -> None:
        """Write it into a context's state, if there is anything."""
        found = {GRADIENT: self.gradient}
        if self.targets:
            found |= {TARGETS: self.targets.targets, WEIGHTS: self.targets.weights}
        arrays = {name: Array(value.numpy()) for name, value in found.items() if value is not None}
        if arrays:
            state[HALF_WAY] = ArrayRecord(arrays)

    @classmethod
    def restored(cls, state: RecordDict) -> HalfWay:
        """Read back what :meth:`save` wrote."""
        record = state.array_records.get(HALF_WAY, ArrayRecord())
        found = {name: torch.from_numpy(array.numpy()) for name, array in record.items()}
        targets = Targets(found[TARGETS], found.get(WEIGHTS)) if TARGETS in found else None
        return cls(targets, found.get(GRADIENT))


def finish_forward(client: Client, output: Payload) -> tuple[Payload, float]:
    """Run the middle's output through the end; return what is sent of its gradient, and the loss.

    Raises
    ------
    RuntimeError
        The client is not waiting for an output.
    ValueError
        A gradient that is not finite.
    """
    targets = client.half_way.targets
    if targets is None:
        raise RuntimeError("no exchange in progress: this client's state was lost")
    tokens = output.values["tokens"]
    value, of_end, of_output = conclude(client.head, tokens, targets, client.here)
    sent = pack(client.worker.downlink, Payload({"tokens": of_output}), client.here, "way back")
    client.half_way = HalfWay(gradient=of_end)
    return sent, value
