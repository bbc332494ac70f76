"""Holds a part to the public laws of its kind, as a codec, a channel, a model or a strategy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fl_split.checks import check_channel, check_codec, check_model
from fl_split.spec_errors import SpecError
from fl_split.specs import parse, resolve
from simulations.checks import check_engine, check_skew, check_strategy
from simulations.runs.parts import SPEC_TABLES

LAWS: dict[str, Callable[[Any], None]] = {
    "channel": check_channel,
    "codec": check_codec,
    "engine": check_engine,
    "model": check_model,
    "skew": check_skew,
    "strategy": check_strategy,
}
"""By key of an experiment: what holds its parts to their laws."""


def check(spec: str) -> str:
    """Hold the part that `spec` names to the laws of its kind; return the kind.

    Parameters
    ----------
    spec : str
        ``my_pkg.codecs:MyCodec(ratio=0.1)``, or one of ours.

    Raises
    ------
    SpecError
        Nothing is so called, or it is of no kind that has laws.
    AssertionError
        It breaks a law; the message names the law.
    """
    part = _built(spec)
    for key, hold in LAWS.items():
        if isinstance(part, SPEC_TABLES[key].kind):
            hold(part)
            return key
    raise SpecError(f"{spec!r} is none of {', '.join(LAWS)}: it has no laws to be held to")


def _built(spec: str) -> Any:
    """Build the part that `spec` names, of whatever table has its name."""
    tables = [SPEC_TABLES[key] for key in LAWS]
    if ":" not in spec.partition("(")[0]:
        for table in tables:
            with suppress(SpecError):
                resolve(spec, table)
                return parse(spec, table)
    return parse(spec, {name: entry for table in tables for name, entry in table.items()})
