"""Checks of keys that are a number or a text: each returns the value, or says what it must be."""

from __future__ import annotations

from typing import Any


def checked_end(end: Any) -> Any:
    """Return a number of stages, a stage's name, or 0."""
    if (type(end) is int and end >= 0) or (isinstance(end, str) and _no_number(end)):
        return end
    raise ValueError(
        f"must be a number of stages, a stage's name, or 0, got {end!r}{_unquoted(end)}"
    )


def checked_stack(stack: Any) -> Any:
    """Return a number of clients, or "auto"."""
    if stack == "auto" or (type(stack) is int and stack >= 1):
        return stack
    raise ValueError(f"must be 'auto' or a number from 1, got {stack!r}{_unquoted(stack)}")


def _unquoted(value: Any) -> str:
    is_number = isinstance(value, str) and value.isdecimal()
    return f"; a number has no quotes: {value}" if is_number else ""


def _no_number(text: str) -> bool:
    """Tell whether a text names a stage: text of digits might be its number, or its name."""
    return bool(text) and not text.isdecimal()
