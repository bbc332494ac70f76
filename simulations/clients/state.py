"""What a client is between two messages; a Flower context keeps it, a checkpoint saves it."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from strategies.server.assignment import Assignment
from strategies.server.flower_messages import tensors_from_record, tensors_to_record

PLACE, HEAD, OPTIMIZER, MEMORY = "place", "head", "optimizer", "memory"
"""Records of ``context.state``."""


@dataclass(frozen=True)
class ClientState:
    """All that the next message needs, in plain numbers and tensors.

    Attributes
    ----------
    round, step : int
        Where the client is; round 0 is in none: then `head` and `moments` are there only if it
        keeps its head.
    keeps_head : bool
        Whether the head is the client's own, and not the server's.
    assignment : Assignment
        What the client was asked to do in this round.
    head : Tensor, optional
        (P,) weights.
    moments : dict[str, Tensor]
        What the optimiser of the head remembers, and gradients that wait for its next step.
    memory : dict[str, Tensor]
        What the exchange remembers.
    """

    round: int
    step: int
    keeps_head: bool
    assignment: Assignment
    head: Tensor | None
    moments: dict[str, Tensor]
    memory: dict[str, Tensor]

    def write(self, state: RecordDict) -> None:
        """Write it into a context's state."""
        state[PLACE] = ConfigRecord(
            {
                "round": self.round,
                "step": self.step,
                "keeps-head": self.keeps_head,
                **self.assignment.numbers(),
            }
        )
        if self.head is not None:
            state[HEAD] = tensors_to_record({HEAD: self.head})
            state[OPTIMIZER] = tensors_to_record(self.moments)
        if self.memory:
            state[MEMORY] = tensors_to_record(self.memory)

    @classmethod
    def read(cls, state: RecordDict) -> ClientState | None:
        """Read what :meth:`write` wrote; None if nothing was: a client that never began."""
        if PLACE not in state:
            return None
        place, arrays = state.config_records[PLACE], state.array_records
        return cls(
            round=int(str(place["round"])),
            step=int(str(place["step"])),
            keeps_head=bool(place["keeps-head"]),
            assignment=Assignment.told(place),
            head=tensors_from_record(arrays[HEAD])[HEAD] if HEAD in arrays else None,
            moments=tensors_from_record(arrays[OPTIMIZER]) if OPTIMIZER in arrays else {},
            memory=tensors_from_record(arrays[MEMORY]) if MEMORY in arrays else {},
        )
