"""The laws that parts are held to, for tests of your own parts; a door, nothing lives here.

    from fl_split.testing import check_codec
    check_codec(MyCodec(ratio=0.1))

Each raises AssertionError with a sentence that names the law that was broken; its docstring
lists the laws. Checks of strategies, skews and engines run tiny experiments.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_split.checks import (
        check_channel,
        check_codec,
        check_exits,
        check_model,
        check_tokens,
    )
    from simulations.checks import check_engine, check_skew, check_strategy

__all__ = [
    "check_channel",
    "check_codec",
    "check_engine",
    "check_exits",
    "check_model",
    "check_skew",
    "check_strategy",
    "check_tokens",
]

ROOMS = {
    "check_channel": "fl_split.checks",
    "check_codec": "fl_split.checks",
    "check_engine": "simulations.checks",
    "check_exits": "fl_split.checks",
    "check_model": "fl_split.checks",
    "check_skew": "simulations.checks",
    "check_strategy": "simulations.checks",
    "check_tokens": "fl_split.checks",
}
"""Where checks live: opened when one is asked for, so that fl_split imports nothing above it."""


def __getattr__(name: str) -> Any:
    """Fetch a check."""
    if name not in ROOMS:
        raise AttributeError(f"fl_split.testing has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(ROOMS[name]), name)
