"""The parts of a model that phases train apart: which weight belongs to which of them."""

from __future__ import annotations

from typing import Any, Literal, get_args

Part = Literal["head", "tail", "codec", "gates", "exits"]
"""The model's own layers before the cut and behind it, a codec's encoder and decoder, what selects
tokens, and exits. An auxiliary classifier is a part of the head, whose loss it is; the end of a
U-shape is one of the tail."""

Parts = frozenset[Part]

EVERY: Parts = frozenset(get_args(Part))
EXITS_ALONE: Parts = frozenset({"exits"})
"""What needs nothing of the server."""

GROUPS: dict[str, Parts] = {"all": EVERY, "trunk": EVERY - EXITS_ALONE}
"""Names of several parts."""

NAMED: dict[str, Parts] = {**GROUPS, **{part: frozenset({part}) for part in get_args(Part)}}


def named(text: str) -> Parts:
    """Read names of parts or groups, with commas between.

    Raises
    ------
    ValueError
        There is no name, or one that is unknown.
    """
    words, found = [word.strip() for word in text.split(",")], Parts()
    for word in words:
        if word not in NAMED:
            raise ValueError(
                "train must name parts with commas between, as 'codec, tail', of "
                f"{', '.join(NAMED)}; got {word!r}"
            )
        found |= NAMED[word]
    return found


INSIDE: dict[str, Part] = {
    "encoder": "codec",
    "decoder": "codec",
    "selector": "gates",
    "end": "tail",
}
"""What modules inside a half belong to, by name; all others are its own layers."""


def parts_of(half: Any) -> dict[int, Part]:
    """Return the part of each trained weight of a head or tail, by the id of the weight."""
    owners = [(half, half.part)]
    owners += [(one, INSIDE[name]) for name, one in half.named_children() if name in INSIDE]
    owners += [(one, one.part) for one in half.beside]
    return {id(p): part for one, part in owners for p in one.parameters() if p.requires_grad}
