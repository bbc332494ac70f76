"""What to write instead of a spec string that cannot be read: quotes, or what reads a path."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any

from fl_split.tables import paths, signature

_BARE = re.compile(
    r"""(?<=[(,=\[])(\s*)([^\s'"(),=\[\]{}](?:[^'"(),=\[\]{}]*[^\s'"(),=\[\]{}])?)(?=\s*[,)\]])"""
)
"""A value that stands in no quotes."""

CONSTANTS = {"true": "True", "false": "False", "none": "None", "null": "None"}


def quotes(spec: str) -> str:
    """Say where quotes are missing: ``devices(phone_mid)`` is ``devices('phone_mid')``.

    Nothing where that is not what is wrong.
    """
    written = _BARE.sub(lambda found: found[1] + _literal(found[2]), spec)
    is_better = written != spec and "(" in written and _is_read(written, "eval")
    return f'; write "{written}"' if is_better else ""


def reader(spec: str, table: Mapping[str, Callable[..., Any]]) -> str:
    """Say what reads the file or folder that `spec` is; nothing if it is none.

    An entry of `table` reads it whose first argument is a path and must be given.
    """
    path = os.path.expanduser(spec)
    readers = {name: first for name, one in table.items() if (first := _read_first(one))}
    if not readers or not os.path.exists(path):
        return ""
    kind = "folder" if os.path.isdir(path) else "file"
    advice = " or ".join(f'"{name}({key}={spec!r})"' for name, key in readers.items())
    return f"{spec!r} is a {kind}; write {advice}"


def _read_first(entry: Callable[..., Any]) -> str:
    """Return the first argument of an entry if it is a path and must be given; else nothing.

    An argument that must be named is none: more than a path is meant.
    """
    first = next(iter(signature(entry).parameters.values()), None)
    if first is None or first.kind is Parameter.KEYWORD_ONLY or first.name not in paths(entry):
        return ""
    return first.name if first.default is Parameter.empty else ""


def _literal(text: str) -> str:
    if _is_read(text, "literal"):
        return text
    return CONSTANTS.get(text.lower(), repr(text))


def _is_read(text: str, how: str) -> bool:
    try:
        ast.literal_eval(text) if how == "literal" else ast.parse(text.strip(), mode="eval")
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False
    return True
