"""Spec strings: ``"adc(ratio=0.1)"`` names an entry of a table and its literal arguments."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError

T = TypeVar("T")

STRICT = ConfigDict(strict=True)
"""For the dataclasses that tables name: a string is no number, a word no flag."""


class SpecError(ValueError):
    """A spec string, a key or a value that names nothing we know."""


def parse(spec: str, table: Mapping[str, Callable[..., T]]) -> T:
    """Build the entry of `table` that `spec` describes.

    Parameters
    ----------
    spec : str
        ``"name"`` or ``"name(key=literal, ...)"``, the first keys also by position;
        nothing is evaluated but literals.
    table : Mapping[str, Callable]
        Name to dataclass or function; its signature decides which keys are known.

    Raises
    ------
    SpecError
        Unknown name or key (with the nearest known one), a value that is no literal,
        or a value that the entry itself refuses.
    """
    name, arguments = resolve(spec, table)
    for key, parameter in inspect.signature(table[name]).parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in arguments:
            raise SpecError(f"{spec!r}: {key} must be given")
    try:
        return table[name](**arguments)
    except ValidationError as error:
        raise SpecError(f"{spec!r}: {sentence(error)}") from None
    except (TypeError, ValueError) as error:
        raise SpecError(f"{spec!r}: {error}") from None


def resolve(spec: str, table: Mapping[str, Callable[..., Any]]) -> tuple[str, dict[str, Any]]:
    """Read `spec` and check its names against `table`, without building anything."""
    name, positional, arguments = _read(spec)
    if name not in table:
        raise SpecError(unknown("name", name, table))
    known = parameters(table[name])
    if len(positional) > len(known):
        raise SpecError(f"{spec!r}: {len(positional)} values for {len(known)} arguments")
    for key, value in zip(known, positional, strict=False):
        if key in arguments:
            raise SpecError(f"{spec!r}: {key} is given twice")
        arguments[key] = value
    for key in arguments:
        if key not in known:
            others = [other for other, entry in table.items() if key in parameters(entry)]
            hint = f"; {', '.join(others)} {'has' if len(others) == 1 else 'have'} it"
            raise SpecError(f"{spec!r}: {unknown('argument', key, known)}{hint if others else ''}")
    return name, arguments


def stages(spec: str) -> list[str]:
    """Take ``"a(...) | b(...)"`` apart; a spec without ``|`` is its only stage.

    Raises
    ------
    SpecError
        `spec` cannot be read.
    """
    found: list[str] = []
    node = _expression(spec)
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        found.append(ast.unparse(node.right))
        node = node.left
    return [*reversed([*found, ast.unparse(node)])]


def canonical(
    spec: str, table: Mapping[str, Callable[..., Any]], filled_in: Iterable[str] = ()
) -> str:
    """Spell `spec` out with the defaults of its entry, but for the arguments `filled_in`."""
    name, arguments = resolve(spec, table)
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(table[name]).parameters.items()
        if parameter.default is not inspect.Parameter.empty and key not in filled_in
    }
    parts = (f"{key}={value!r}" for key, value in {**defaults, **arguments}.items())
    return f"{name}({', '.join(parts)})"


def shortened(spec: str, table: Mapping[str, Callable[..., Any]]) -> str:
    """Spell `spec` without what its entry has by default; :func:`canonical` is the opposite.

    A first argument that is a number stays, because it says most: ``adc(ratio=0.1)``. A spec
    that `table` cannot read, as one of an older version, is returned as it is.
    """
    try:
        return " | ".join(_shortened(stage, table) for stage in stages(spec))
    except SpecError:
        return spec


def _shortened(stage: str, table: Mapping[str, Callable[..., Any]]) -> str:
    name, arguments = resolve(stage, table)
    known = inspect.signature(table[name]).parameters
    given = {key: arguments[key] for key in known if key in arguments}  # in one order
    first = next(iter(given), None)
    told = [
        f"{key}={value!r}"
        for key, value in given.items()
        if value != known[key].default or (key == first and type(value) in {int, float})
    ]
    return f"{name}({', '.join(told)})" if told else name


def parameters(entry: Callable[..., Any]) -> list[str]:
    """Names that a spec may set on `entry`."""
    return list(inspect.signature(entry).parameters)


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


def _expression(spec: str) -> ast.expr:
    try:
        return ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise SpecError(f"{spec!r} is not of the form name(key=value, ...)") from None


def _read(spec: str) -> tuple[str, list[Any], dict[str, Any]]:
    call = _expression(spec)
    if isinstance(call, ast.Name):
        return call.id, [], {}
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise SpecError(f"{spec!r} is not of the form name(key=value, ...)")
    arguments = {}
    for keyword in call.keywords:
        key = str(keyword.arg)
        if key in arguments:
            raise SpecError(f"{spec!r}: {key} is given twice")
        arguments[key] = _literal(spec, key, keyword.value)
    return call.func.id, [_literal(spec, "a value", value) for value in call.args], arguments


def _literal(spec: str, key: str, value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise SpecError(f"{spec!r}: {key} must be a literal, as 0.1 or 'text'") from None
