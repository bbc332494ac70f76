"""Quantities as people write them: ``'10Mbit/s'``, ``'40ms'``, ``'1 TFLOP/s'``."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

Kind = Literal["rate", "time", "speed", "memory"]

PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

UNITS: dict[Kind, dict[str, float]] = {
    "rate": {"bit/s": 1.0, "bps": 1.0, "b/s": 1.0, "B/s": 8.0, "Byte/s": 8.0},
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "h": 3600.0, "d": 86400.0},
    "speed": {"FLOP/s": 1.0, "FLOPS": 1.0, "flop/s": 1.0},
    "memory": {"B": 1.0, "Byte": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
}
"""Units and their size: in bit/s, seconds, floating-point operations per second, bytes."""

EXAMPLES: dict[Kind, str] = {
    "rate": "'10Mbit/s', '1.25MB/s' or '50kbps'",
    "time": "'40ms', '2s', '5min' or '3h'",
    "speed": "'5GFLOP/s' or '1.2TFLOP/s'",
    "memory": "'512MB' or '8GiB'",
}

FORM = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(\S*)\s*", re.ASCII | re.I)


def quantity(text: Any, kind: Kind) -> float:
    """Read a quantity; return it in bit/s, seconds, FLOP/s or bytes.

    A prefix k, M, G or T stands for powers of 1,000; a small b is a bit, a large B eight.

    Raises
    ------
    ValueError
        It has no unit, another one than `kind` has, or is negative or not finite.
    """
    expected = f"write {EXAMPLES[kind]}; units are {', '.join(UNITS[kind])}"
    if kind != "time":
        expected += ", after k, M, G or T if need be"
    if not isinstance(text, str):
        raise ValueError(f"{text!r} has no unit: {expected}")
    found = FORM.fullmatch(text)
    factor = _factor(found.group(2), kind) if found else None
    if found is None or factor is None:
        unit = "no unit" if found and not found.group(2) else f"no unit of {kind}"
        raise ValueError(f"{text!r} has {unit}: {expected}")
    value = float(found.group(1)) * factor
    if value < 0 or not math.isfinite(value):
        raise ValueError(f"{text!r} must not be negative")
    return value


def positive(text: Any, kind: Kind, why: str) -> float:
    """Read a quantity that must be above 0; ValueError that ends with `why` if it is 0."""
    value = quantity(text, kind)
    if not value:
        raise ValueError(f"{text!r}: {why}")
    return value


def _factor(unit: str, kind: Kind) -> float | None:
    """Return the size of a unit, with a prefix where its kind takes one; None if unknown."""
    known = UNITS[kind]
    if unit in known:
        return known[unit]
    prefix, rest = unit[:1], unit[1:]
    if kind == "time" or prefix not in PREFIXES or rest not in known:
        return None
    return PREFIXES[prefix] * known[rest]


def told(value: float, unit: str) -> str:
    """Write a number of `unit` with the prefix that suits it: 26 Mbit/s."""
    for prefix in ("T", "G", "M", "k"):
        if value >= PREFIXES[prefix]:
            return f"{value / PREFIXES[prefix]:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
