"""What is wrong with a spec string or a key, in one line that says what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import ValidationError


class SpecError(ValueError):
    """A spec string, a key or a value that names nothing we know."""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Say that `name` is unknown, what was probably meant, and what is known."""
    names = sorted(known)
    near = nearest(name, names)
    hint = f"did you mean {near!r}? " if near else ""
    return f"unknown {what} {name!r}; {hint}Known: {', '.join(names) or 'none'}"


def nearest(name: object, known: Iterable[str]) -> str:
    """Return which of the names `known` was probably meant; nothing if none is like it."""
    return next(iter(difflib.get_close_matches(str(name), [*known], n=1, cutoff=0.5)), "")


def sentence(error: ValidationError) -> str:
    """Turn a pydantic error into one line: which field, the rule, the value."""
    parts = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            parts.append(f"{field} must be given")
        elif field:
            message = message.replace("Input should be", "must be")
            is_rule = message.startswith("must")
            got = "" if problem["type"] == "value_error" else f", got {problem['input']!r}"
            parts.append(f"{field}{' ' if is_rule else ': '}{message}{got}")
        else:
            parts.append(message)
    return "; ".join(parts)
