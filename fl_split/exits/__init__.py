"""Exits: a device that is sure answers by itself; one paper, one file."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from fl_split.exits.exits import Exiting, Exits, exits_of
from fl_split.exits.plain import Plain
from fl_split.exits.recursive import Recursive
from fl_split.models.cut import Head, Tail
from fl_split.seeds import seeded
from fl_split.specs import STRICT
from fl_split.tables import Table


@dataclass(frozen=True, config=STRICT)
class NoExits:
    """Only the server answers."""

    def build(self, head: Head, tail: Tail, num_classes: int) -> tuple[None, None]:
        """Build nothing."""
        return None, None


EXITS: Table[type[Exiting]] = Table(
    Exiting, "fl_split.exits", {"none": NoExits, "plain": Plain, "recursive": Recursive}
)


def insert_exits(head: Head, tail: Tail, exits: Exiting, num_classes: int, seed: int) -> None:
    """Put exits, if there are any, beside both halves; their weights are drawn from `seed`."""
    with seeded(seed, "exits"):
        of_halves = exits.build(head, tail, num_classes)
    for beside, found in zip((head.beside, tail.beside), of_halves, strict=True):
        if found is not None:
            beside.append(found)


__all__ = ["EXITS", "Exiting", "Exits", "NoExits", "exits_of", "insert_exits"]
