"""Exits that a client keeps for itself, from round to round, while the rest of its head travels."""

from __future__ import annotations

from torch import Tensor

from fl_split.exchange.records import EXITS
from fl_split.flat import Flat, flatten, private
from fl_split.models.cut import Head


def kept(memory: dict[str, Tensor], drawn: Head) -> Tensor:
    """Return those of the last round that the client has ended, at first those of `drawn`."""
    found = memory.get(EXITS)
    return flatten(private(drawn)) if found is None else found


def keep(memory: dict[str, Tensor], head: Flat[Head]) -> None:
    """Keep those of a head in training, if it has some.

    Raises
    ------
    ValueError
        They are not finite: then the round must leave no trace in what the client keeps.
    """
    if not head.num_private:
        return
    if not bool(head.private.isfinite().all()):
        raise ValueError("training gave private exits that are not finite")
    memory[EXITS] = head.private.clone()
