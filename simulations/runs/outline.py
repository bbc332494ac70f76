"""What an experiment's keys and tables hold, read from the source: nothing is imported.

Importing torch and Flower takes seconds; lists and misspelt names do not need them. An
:class:`Outline` stands for an entry of a table and has its signature and its docstring, so
that :func:`fl_split.specs.resolve` says of it what it says of the entry.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, TypeGuard

from fl_split.tables import Table, signature

EXPERIMENT, PARTS = "simulations.runs.experiment", "simulations.runs.parts"

WAYS = ("up", "down")
"""Constants of a codec: what goes up, what comes down."""

Place = tuple[str, ast.AST]
"""A module by its dotted name, and a piece of its source."""


class UnreadableError(Exception):
    """Source that only Python itself can make sense of."""


@dataclass(frozen=True)
class Outline:
    """An entry of a table: how it is called, its docstring, and constants of a class by name.

    `source` says where an entry that is not ours comes from.
    """

    __signature__: Signature
    doc: str
    constants: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def of(cls, entry: Any, source: str = "") -> Outline:
        """Return the outline of an entry that has been imported."""
        target = entry.func if isinstance(entry, partial) else entry
        constants = {
            name: getattr(target, name) for name in (*WAYS, "paths") if hasattr(target, name)
        }
        return cls(signature(entry), inspect.getdoc(target) or "", constants, source)

    @property
    def paths(self) -> tuple[str, ...]:
        """Names of the arguments that are paths."""
        return tuple(self.constants.get("paths", ()))

    def __call__(self, **arguments: Any) -> Any:
        """Nothing can be built of an outline; it is callable because entries are."""
        raise NotImplementedError


@dataclass(frozen=True)
class Key:
    """A key of an experiment; `may_be_text` is told of those that are a number or a text."""

    default: Any
    about: str
    may_be_text: bool = False


@cache
def keys() -> dict[str, Key]:
    """Keys of an experiment by name; UnreadableError if the source is beyond us."""
    module, node = _lookup(EXPERIMENT, "Experiment")
    found = {}
    texts = {ast.unparse(one.target) for one in ast.walk(node) if _may_be_text(one)}
    for name, declared in _annotated(node):
        if isinstance(declared, ast.Call):
            about = _keyword(declared, "description")
            text = "" if about is None else _value(module, about)
            found[name] = Key(_value(module, declared.args[0]), text, name in texts)
    return found


def _may_be_text(node: ast.AST) -> TypeGuard[ast.AnnAssign]:
    """Tell whether a field may be a text or something else."""
    return isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).endswith("| str")


@cache
def tables() -> dict[str, dict[str, Outline]]:
    """Tables by key, as ``SPEC_TABLES`` has them; UnreadableError as :func:`keys`.

    It is raised too where other installed packages bring parts along, which no source of ours
    names.
    """
    if any(group.startswith("fl_split.") for group in entry_points().groups):
        raise UnreadableError("there are parts of other packages")
    return {
        key: _table(*_resolve(module, value))
        for key, (module, value) in _items(*_lookup(PARTS, "SPEC_TABLES"))
    }


def table(module: str, name: str) -> Table[Outline]:
    """Return the outlines of a table that no key of an experiment names an entry of."""
    return _table(*_lookup(module, name))


def _table(module: str, node: ast.AST) -> Table[Outline]:
    """Return a table with the outlines of its entries, and what whoever builds one fills in."""
    entries = {name: _outline(*entry) for name, entry in _items(module, node)}
    more = node.args[3:] if isinstance(node, ast.Call) else []
    return Table(Outline, "", entries, *(_value(module, one) for one in more))


def constant(module: str, name: str) -> Any:
    """Return what a module's constant is worth, without importing the module."""
    return _value(*_lookup(module, name))


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def _file(module: str) -> Path:
    """Find a module's file; only that of its top package is looked up, as nothing is imported."""
    package, *inner = module.split(".")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UnreadableError(f"{package} is no package")
    path = Path(spec.submodule_search_locations[0]).joinpath(*inner)
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    raise UnreadableError(module)


def _lookup(module: str, name: str) -> Place:
    """Find what `name` is in `module`: a definition, a value, or a module."""
    for node in reversed(_tree(module).body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(_is(target, name) for target in node.targets):
            return _resolve(module, node.value)
        if isinstance(node, ast.AnnAssign) and _is(node.target, name) and node.value:
            return _resolve(module, node.value)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _imported(_absolute(module, node), alias.name)
    raise UnreadableError(f"{module} has no {name}")


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    levels = node.level - (_file(module).name == "__init__.py")
    return ".".join([*module.split(".")[: -levels or None], *filter(None, [node.module])])


def _imported(module: str, name: str) -> Place:
    try:
        return f"{module}.{name}", _tree(f"{module}.{name}")
    except UnreadableError:
        return _lookup(module, name)


def _resolve(module: str, node: ast.AST) -> Place:
    """Follow names to what they name."""
    if isinstance(node, ast.Name):
        return _lookup(module, node.id)
    if isinstance(node, ast.Attribute):
        inner, found = _resolve(module, node.value)
        if isinstance(found, ast.Module):
            return _lookup(inner, node.attr)
    return module, node


def _items(module: str, node: ast.AST) -> Iterator[tuple[str, Place]]:
    """Yield the entries of a dict that is written down, as it is or in a ``Table``."""
    if isinstance(node, ast.Call) and _is(node.func, "Table"):
        node = node.args[2]
    if not isinstance(node, ast.Dict):
        raise UnreadableError(f"{module}: no dict")
    for key, value in zip(node.keys, node.values, strict=True):
        if key is None:
            yield from _items(*_resolve(module, value))
        else:
            yield _value(module, key), (module, value)


def _value(module: str, node: ast.AST) -> Any:
    """Return what a literal, or the name of one, is worth."""
    where, found = _resolve(module, node)
    if isinstance(found, ast.Call) and (inner := _keyword(found, "default")):
        return _value(where, inner)
    try:
        return ast.literal_eval(found)
    except ValueError:
        raise UnreadableError(f"{where}: {ast.dump(found)}") from None


def _keyword(call: ast.Call, name: str) -> ast.AST | None:
    return next((one.value for one in call.keywords if one.arg == name), None)


def _outline(module: str, node: ast.AST) -> Outline:
    module, node = _resolve(module, node)
    if isinstance(node, ast.Call) and _is(node.func, "partial"):
        return _given(_outline(module, node.args[0]), module, node)
    if isinstance(node, ast.FunctionDef):
        return Outline(Signature(_arguments(module, node)), ast.get_docstring(node) or "")
    if isinstance(node, ast.ClassDef):
        made = Signature(list(_fields(module, node).values()))
        return Outline(made, ast.get_docstring(node) or "", _constants(module, node))
    raise UnreadableError(f"{module}: {ast.dump(node)}")


def _given(entry: Outline, module: str, call: ast.Call) -> Outline:
    """Do as `partial`: those behind the first that is given can be set by name alone."""
    values = {str(one.arg): _value(module, one.value) for one in call.keywords}
    found, behind = [], False
    for name, parameter in entry.__signature__.parameters.items():
        default, behind = values.get(name, parameter.default), behind or name in values
        kind = Parameter.KEYWORD_ONLY if behind else parameter.kind
        found.append(parameter.replace(default=default, kind=kind))
    return replace(entry, __signature__=Signature(found))


def _fields(module: str, node: ast.ClassDef) -> dict[str, Parameter]:
    """Return arguments of a class: of its own ``__init__``, its fields, or a base's."""
    found: dict[str, Parameter] = {}
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return {one.name: one for one in _arguments(module, part)[1:]}
    for where, base in reversed([*_bases(module, node)]):
        if base.decorator_list or not node.decorator_list:
            found |= _fields(where, base)
    if node.decorator_list:
        for name, value in _annotated(node):
            default = Parameter.empty if value is None else _value(module, value)
            found[name] = Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default)
    return found


def _bases(module: str, node: ast.ClassDef) -> Iterator[tuple[str, ast.ClassDef]]:
    for base in node.bases:
        with suppress(UnreadableError):  # of the standard library
            where, found = _resolve(module, base)
            if isinstance(found, ast.ClassDef):
                yield where, found


def _constants(module: str, node: ast.ClassDef) -> dict[str, Any]:
    """Return texts and flags that a class or its bases declare as ``ClassVar``."""
    found: dict[str, Any] = {}
    for base in reversed([*_bases(module, node)]):
        found |= _constants(*base)
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and part.value and "ClassVar" in ast.dump(part):
            with suppress(UnreadableError):
                found[ast.unparse(part.target)] = _value(module, part.value)
    return found


def _annotated(node: ast.AST) -> Iterator[tuple[str, ast.expr | None]]:
    """Yield names and values of a class's fields."""
    for part in getattr(node, "body", []):
        if isinstance(part, ast.AnnAssign) and "ClassVar" not in ast.dump(part.annotation):
            yield ast.unparse(part.target), part.value


def _arguments(module: str, node: ast.FunctionDef) -> list[Parameter]:
    declared = node.args
    positional = [*declared.posonlyargs, *declared.args]
    missing = [None] * (len(positional) - len(declared.defaults))
    kinds = Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY
    found = []
    for kind, arguments, defaults in (
        (kinds[0], positional, [*missing, *declared.defaults]),
        (kinds[1], declared.kwonlyargs, declared.kw_defaults),
    ):
        for argument, default in zip(arguments, defaults, strict=True):
            value = inspect.Parameter.empty if default is None else _value(module, default)
            found.append(Parameter(argument.arg, kind, default=value))
    if declared.kwarg:
        found.append(Parameter(declared.kwarg.arg, Parameter.VAR_KEYWORD))
    return found


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
