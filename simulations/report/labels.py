"""Short texts for settings: `sflv2, adc(ratio=0.1)` for the keys that matter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain, zip_longest
from typing import Any

from fl_split.specs import shortened
from simulations.runs.experiment import UNTOLD, Experiment
from simulations.runs.parts import SPEC_TABLES

TASK = ("dataset", "partition", "clients", "fraction", "skew", "holdout", "test_fraction", "system")
"""Keys that describe the task (data, clients, devices); all other keys describe the method."""

SELF_EVIDENT = ("strategy", "codec", "partition", "dataset", "model")
"""Keys whose value is clear without the key; labels and names of folders begin with them."""

TOLD = 8
"""Configurations that the description of a figure names; its table has them all."""

NUMBER = re.compile(r"(?<==)(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?=[,)]|$)")
"""A number that an argument or a key is set to."""


def ordered(keys: Iterable[str]) -> list[str]:
    """Put keys in the order in which labels name them."""
    known = [*SELF_EVIDENT, *(key for key in Experiment.model_fields if key not in SELF_EVIDENT)]
    return sorted(keys, key=lambda key: (known.index(key) if key in known else len(known), key))


def natural(text: str) -> tuple[bool, list[tuple[int, float, str]]]:
    """Return a key to sort by: no compression first, then by name, numbers by value."""
    pieces = re.findall(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?|[^\d]+", text)
    keys = [(0, float(p), "") if p[0].isdigit() else (1, 0.0, p) for p in pieces]
    return text != "identity", keys


def joined(differing: Mapping[str, str], keys: Iterable[str]) -> str:
    """Join the texts of `keys`; leave out untold defaults, unless there are no others."""
    texts = [differing[key] for key in keys]
    told = [text for text in texts if text not in _untold()]
    return ", ".join(told or texts)


def listed(texts: Sequence[str]) -> str:
    """Join the first texts and count the rest: a figure's description is read aloud."""
    rest = len(texts) - TOLD
    return "; ".join(texts[:TOLD]) + (f" and {rest} more" if rest > 0 else "")


def span(ordered: Sequence[str]) -> str:
    """Return ``first to last``, or one text if both are equal."""
    return " to ".join(dict.fromkeys([ordered[0], ordered[-1]]))


def families(labels: Iterable[str]) -> dict[str, str]:
    """Map each label to the name of its family, whose labels differ in numbers only.

    `adc(ratio=0.05)` and `adc(ratio=0.2)` are of the family `adc(ratio=0.05 to 0.2)`.
    """
    alike: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for label in labels:
        parts = NUMBER.split(label)  # words, and the numbers between them
        alike.setdefault(tuple(parts[::2]), {})[label] = parts[1::2]
    found: dict[str, str] = {}
    for words, members in alike.items():
        columns = zip(*members.values(), strict=True)
        told = [span(sorted(column, key=float)) for column in columns]
        name = "".join(chain(*zip_longest(words, told, fillvalue="")))
        found |= dict.fromkeys(members, name)
    return found


def part(key: str, value: Any, is_short: bool = True) -> str:
    """Return what a label says of a key, without the defaults of a spec if it is to be short."""
    if value is None:
        return f"{key} not given"
    text = short(key, value) if is_short else str(value)
    return text if key in SELF_EVIDENT else f"{key}={text}"


def short(key: str, value: Any) -> str:
    """Spell the value of `key` without what a spec has by default."""
    if key not in SPEC_TABLES or not isinstance(value, str):
        return str(value)
    return shortened(value, SPEC_TABLES[key])


@cache
def _untold() -> frozenset[str]:
    """Texts of settings that a label names only if it has nothing else to name."""
    fields = Experiment.model_fields.items()
    return frozenset(
        part(k, field.default) for k, field in fields if field.json_schema_extra == UNTOLD
    )
