"""Tables: the parts of one kind by name, ours and those of others."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fl_split import foreign
from fl_split.spec_errors import SpecError, unknown

T = TypeVar("T")
E = TypeVar("E", bound=Callable[..., Any])


class Table(dict[str, E]):
    """The parts of one kind by name.

    Parameters
    ----------
    kind : type
        What an entry must build: a class, or a protocol that can be checked at run time.
    group : str
        Entry points under which installed packages may offer more of them.
    entries : Mapping
        Our own, by name.
    filled_in : sequence of str
        Arguments that whoever builds an entry adds to those of a spec.
    """

    def __init__(
        self,
        kind: type,
        group: str,
        entries: Mapping[str, E],
        filled_in: Sequence[str] = (),
    ) -> None:
        super().__init__(entries)
        self.kind, self.group, self.filled_in = kind, group, tuple(filled_in)

    def by_position(self, known: Sequence[str]) -> list[str]:
        """Put arguments into the order in which they take values without a name.

        Those that are filled in come last, so that ``dirichlet(0.5)`` is no number of clients. An
        entry without the first of them keeps its own order: ``natural('writer')``.
        """
        is_told = any(key in known for key in self.filled_in[:1])
        return sorted(known, key=lambda key: is_told and key in self.filled_in)

    def foreign(self, modules: Iterable[str]) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Yield the parts of our kind of installed packages, and of imported `modules`, by name."""
        for name, reference in foreign.offered(self.group).items():
            yield name, foreign.load(reference)
        members = [name for name in vars(self.kind) if not name.startswith("_")]
        for module in modules:
            for name, found in vars(sys.modules[module]).items():
                is_own = isinstance(found, type) and found.__module__ == module
                if is_own and all(hasattr(found, member) for member in members):
                    yield f"{module}:{name}", found

    def check(self, built: object, spec: str) -> None:
        """Raise SpecError if `built` is not of our kind."""
        if not isinstance(built, self.kind):
            kind, where = self.kind.__name__, f"{self.kind.__module__}.{self.kind.__name__}"
            members = [name for name in vars(self.kind) if not name.startswith("_")]
            is_protocol = getattr(self.kind, "_is_protocol", False)
            what = f"that has {', '.join(members)}, see {where}" if is_protocol else f"of {where}"
            raise SpecError(
                f"{built!r:.40} is no {kind}: write a text, as '{next(iter(self))}()', or give an "
                f"object {what}"
            )


def entry(name: str, table: Mapping[str, Callable[..., T]]) -> Callable[..., T]:
    """Return what `name` names: an entry of `table`, of an installed package, or of a module.

    Raises
    ------
    SpecError
        Nothing has this name, or its module cannot be imported.
    """
    if name in table:
        return table[name]
    if ":" in name:
        return foreign.load(name)
    offered = foreign.offered(table.group) if isinstance(table, Table) else {}
    if name in offered:
        return foreign.load(offered[name])
    raise SpecError(unknown("name", name, [*table, *offered]))


def signature(entry: Callable[..., Any]) -> inspect.Signature:
    """Return how `entry` is called.

    A class takes the signature of the nearest class that defines its constructor: pydantic
    stores that of a dataclass in an attribute, which subclasses inherit and do not fit.
    """
    if not isinstance(entry, type):
        return inspect.signature(entry)
    owner = next(kind for kind in entry.__mro__ if "__init__" in vars(kind))
    if owner is object:
        return inspect.Signature()
    if "__signature__" in vars(owner):
        return inspect.signature(owner)
    made = inspect.signature(vars(owner)["__init__"])
    return made.replace(parameters=[*made.parameters.values()][1:])


ANY = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def parameters(entry: Callable[..., Any]) -> list[str]:
    """Names that a spec may set on `entry`."""
    known = signature(entry).parameters
    return [key for key, parameter in known.items() if parameter.kind not in ANY]


def takes_any(entry: Callable[..., Any]) -> bool:
    """Tell whether a spec may set names on `entry` that its signature does not list."""
    kinds = {parameter.kind for parameter in signature(entry).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def paths(entry: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the arguments of `entry` that are paths of files or folders.

    An entry declares them itself: ``paths: ClassVar = ("path",)``. What is written there may
    begin with ``~`` or be relative; a saved experiment has the absolute path.
    """
    return tuple(getattr(getattr(entry, "func", entry), "paths", ()))
