"""Spec strings: ``"adc(ratio=0.1)"`` names an entry of a table and its literal arguments.

An entry is ours, or somebody else's (see :mod:`fl_split.foreign`): ``"my_pkg.codecs:MyCodec(0.1)"``
names a class by its module. A :class:`Given` stands for an object that is already built.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError

from fl_split.foreign import GIVEN, Given
from fl_split.spec_errors import SpecError, sentence, unknown
from fl_split.spec_hints import quotes, reader
from fl_split.tables import ANY, Table, entry, parameters, paths, signature, takes_any

T = TypeVar("T")

STRICT = ConfigDict(strict=True)
"""For the dataclasses that tables name: a string is no number, a word no flag."""


def parse(
    spec: str, table: Mapping[str, Callable[..., T]], given: Mapping[str, Any] | None = None
) -> T:
    """Build the entry of `table` that `spec` describes.

    Parameters
    ----------
    spec : str
        ``"name"`` or ``"name(key=literal, ...)"``, the first keys also by position;
        nothing is evaluated but literals.
    table : Mapping[str, Callable]
        Name to dataclass or function; its signature decides which keys are known.
    given : Mapping, optional
        Arguments that `spec` may leave out; those that the entry does not have are not used.

    Raises
    ------
    SpecError
        Unknown name or key (with the nearest known one), a value that is no literal,
        a value that the entry itself refuses, or an entry that is none of `table`'s kind.
    """
    if isinstance(spec, Given):
        built: T = spec.part
    else:
        built = _build(spec, table, given or {})
    if isinstance(table, Table):
        table.check(built, spec)
    return built


def _build(spec: str, table: Mapping[str, Callable[..., T]], given: Mapping[str, Any]) -> T:
    name, arguments = resolve(spec, table)
    make = entry(name, table)
    known = signature(make).parameters
    arguments = {**{key: value for key, value in given.items() if key in known}, **arguments}
    for key, parameter in known.items():
        is_needed = parameter.default is inspect.Parameter.empty
        if is_needed and parameter.kind not in ANY and key not in arguments:
            raise SpecError(f"{spec!r}: {key} must be given")
    try:
        return make(**arguments)
    except ValidationError as error:
        raise SpecError(f"{spec!r}: {sentence(error)}") from None
    except (TypeError, ValueError) as error:
        raise SpecError(f"{spec!r}: {error}") from None


def resolve(spec: str, table: Mapping[str, Callable[..., Any]]) -> tuple[str, dict[str, Any]]:
    """Read `spec` and check its names against `table`, without building anything."""
    if isinstance(spec, Given):
        return GIVEN, {}
    name, positional, arguments, known = _named(spec, table)
    if len(positional) > len(known):
        raise SpecError(f"{spec!r}: {len(positional)} values for {len(known)} arguments")
    places = table.by_position(known) if isinstance(table, Table) else known
    for key, value in zip(places, positional, strict=False):
        if key in arguments:
            raise SpecError(f"{spec!r}: {key} is given twice")
        arguments[key] = value
    for key in arguments:
        if key not in known and not takes_any(entry(name, table)):
            others = [other for other, one in table.items() if key in parameters(one)]
            hint = f"; {', '.join(others)} {'has' if len(others) == 1 else 'have'} it"
            raise SpecError(f"{spec!r}: {unknown('argument', key, known)}{hint if others else ''}")
    return name, arguments


def _named(
    spec: str, table: Mapping[str, Callable[..., Any]]
) -> tuple[str, list[Any], dict[str, Any], list[str]]:
    """Take `spec` apart: its name, values without and with names, and arguments of its entry."""
    try:
        name, positional, arguments = _read(spec)
        if name == GIVEN:
            raise SpecError(
                f"{_label(spec)} was an object in memory; give it again, as "
                "fl_split.resume(folder, KEY=object) and fl_split.load(folder, KEY=object) do"
            )
        return name, positional, arguments, parameters(entry(name, table))
    except SpecError as error:
        raise SpecError(reader(spec, table) or str(error)) from None


def stages(spec: str) -> list[str]:
    """Take ``"a(...) | b(...)"`` apart; a spec without ``|`` is its only stage.

    What cannot be read is one too, which :func:`resolve` refuses.
    """
    if isinstance(spec, Given):
        return [spec]
    found: list[str] = []
    try:
        node = _expression(spec)
    except SpecError:
        return [spec.strip()]
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        found.append(_unparse(node.right))
        node = node.left
    return [*reversed([*found, _unparse(node)])] if found else [spec.strip()]


def canonical(
    spec: str, table: Mapping[str, Callable[..., Any]], filled_in: Iterable[str] = ()
) -> str:
    """Spell `spec` out with the defaults of its entry, but for the arguments `filled_in`."""
    if isinstance(spec, Given):
        return spec
    name, arguments = resolve(spec, table)
    defaults = {
        key: parameter.default
        for key, parameter in signature(entry(name, table)).parameters.items()
        if parameter.default is not inspect.Parameter.empty and key not in filled_in
    }
    parts = (f"{key}={value!r}" for key, value in {**defaults, **arguments}.items())
    return f"{name}({', '.join(parts)})"


def located(spec: str, table: Mapping[str, Callable[..., Any]], place: Callable[[str], str]) -> str:
    """Replace every path in `spec` by what `place` makes of it.

    Which arguments are paths an entry says itself, see :func:`fl_split.tables.paths`.
    """
    if isinstance(spec, Given):
        return spec
    found, is_other = [], False
    for stage in stages(spec):
        name, arguments = resolve(stage, table)
        among = [key for key in paths(entry(name, table)) if isinstance(arguments.get(key), str)]
        arguments |= {key: place(arguments[key]) for key in among}
        parts = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        found.append(f"{name}({parts})" if among else stage)
        is_other = is_other or bool(among)
    return " | ".join(found) if is_other else spec


def shortened(spec: str, table: Mapping[str, Callable[..., Any]]) -> str:
    """Spell `spec` without what its entry has by default; :func:`canonical` is the opposite.

    A first argument that is a number stays, because it says most: ``adc(ratio=0.1)``. Of an
    absolute path the last part is told: the rest is a matter of one machine. A spec
    that `table` cannot read, as one of an older version, is returned as it is, and so is a part
    of a user's module, which is not imported for this. An object is named as it names itself.
    """
    try:
        return " | ".join(_shortened(stage, table) for stage in stages(spec))
    except SpecError:
        return spec


def _shortened(stage: str, table: Mapping[str, Callable[..., Any]]) -> str:
    name = _read(stage)[0]
    if ":" in name:
        return stage
    if name == GIVEN:
        return _label(stage)
    name, arguments = resolve(stage, table)
    made = entry(name, table)
    known, among = signature(made).parameters, paths(made)
    in_order = {key: arguments[key] for key in known if key in arguments} | arguments
    first = next(iter(in_order), None)
    told = [
        f"{key}={(_last_part(value) if key in among else value)!r}"
        for key, value in in_order.items()
        if key not in known
        or value != known[key].default
        or (key == first and type(value) in {int, float})
    ]
    return f"{name}({', '.join(told)})" if told else name


def _last_part(path: Any) -> Any:
    is_whole = isinstance(path, str) and PurePath(path).is_absolute()
    return PurePath(path).name if is_whole else path


_TEXT_OR_REFERENCE = re.compile(
    r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|([A-Za-z_][\w.]*):([A-Za-z_]\w*)"""
)


def _expression(spec: str) -> ast.expr:
    """Read `spec` as Python, where a reference ``module:name`` is ``module.name``."""
    text = _TEXT_OR_REFERENCE.sub(lambda found: found[1] or f"{found[2]}.{found[3]}", spec)
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise SpecError(_no_form(spec)) from None


def _no_form(spec: str) -> str:
    return f"{spec!r} is not of the form name(key=value, ...){quotes(spec)}"


def _read(spec: str) -> tuple[str, list[Any], dict[str, Any]]:
    call = _expression(spec)
    if isinstance(call, ast.Name | ast.Attribute):
        return _name(spec, call), [], {}
    if not isinstance(call, ast.Call):
        raise SpecError(_no_form(spec))
    arguments = {}
    for keyword in call.keywords:
        key = str(keyword.arg)
        if key in arguments:
            raise SpecError(f"{spec!r}: {key} is given twice")
        arguments[key] = _literal(spec, key, keyword.value)
    positional = [_literal(spec, "a value", value) for value in call.args]
    return _name(spec, call.func), positional, arguments


def _unparse(node: ast.expr) -> str:
    """Write a stage down, a reference as ``module:name``."""
    text, called = ast.unparse(node), node.func if isinstance(node, ast.Call) else node
    if not isinstance(called, ast.Attribute):
        return text
    return _name(text, called) + text.removeprefix(ast.unparse(called))


def _name(spec: str, node: ast.expr) -> str:
    """Return a plain name, or ``module:name``."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        module, _, name = ast.unparse(node).rpartition(".")
        if all(part.isidentifier() for part in module.split(".")):
            return f"{module}:{name}"
    raise SpecError(_no_form(spec))


def _label(spec: str) -> str:
    """Return what an object called itself, of the spec that stands for it."""
    label, *_ = _read(spec)[1] or ["an object"]
    return str(label)


def _literal(spec: str, key: str, value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise SpecError(
            f"{spec!r}: {key} must be a literal, as 0.1 or 'text'{quotes(spec)}"
        ) from None
