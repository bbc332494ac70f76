"""Directives that write reference pages from the code, at build time: no page can be stale.

``{keys}`` lists the keys of an experiment, ``{specs} KEY`` all entries that a key can name
(or `cut`, or `policy`, those of `fl-split infer`),
``{columns}`` the columns of rounds.csv, ``{fields} MODULE.CLASS`` those of a table whose rows are
dataclasses, ``{commands}`` the command line, ``{api} MODULE`` what a module exports, and
``{classes}`` the classes named in its content.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from functools import partial
from importlib import import_module
from typing import Any, get_type_hints

import typer.main
from docutils import nodes
from rich.markup import render
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import NumpyDocstring
from sphinx.util.docutils import SphinxDirective

from simulations.cli.main import app
from simulations.data.partitioners import FILLED_IN
from simulations.inference.policies import POLICIES
from simulations.runs.columns import METRICS, SHOWN
from simulations.runs.cut_laws import CUTS
from simulations.runs.experiment import Experiment
from simulations.runs.parts import CHAINS, SPEC_TABLES

RANGES = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
}
"""Names of limits in a JSON schema, and how a sentence puts them."""

KINDS = {
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "string": "text",
}

UNITS = {
    "share": "share",
    "FLOP": "floating-point operations",
    "s": "seconds",
    "J": "joules",
    "": "number",
}
"""Units of columns as files hold them; others name themselves."""


class Generated(SphinxDirective):
    """A directive whose content is Markdown that :meth:`lines` yields."""

    optional_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Parse the Markdown in place of the directive."""
        text = "\n".join(self.lines())
        return self.parse_text_to_nodes(text, allow_section_headings=True)

    def lines(self) -> Iterator[str]:
        """Yield Markdown."""
        raise NotImplementedError


class Keys(Generated):
    """All keys of an experiment."""

    def lines(self) -> Iterator[str]:
        """Yield a table."""
        schema = Experiment.model_json_schema()["properties"]
        yield from table(
            ("key", "default", "value", "what it is"),
            (
                (
                    f"`{key}`",
                    code(repr(field.default)),
                    _values(key, schema[key]),
                    field.description,
                )
                for key, field in Experiment.model_fields.items()
            ),
        )


class Specs(Generated):
    """All entries that the key given as argument can name, with their arguments."""

    def lines(self) -> Iterator[str]:
        """Yield a section for each entry."""
        key = self.arguments[0]
        for name, entry in {**SPEC_TABLES, "cut": CUTS, "policy": POLICIES}[key].items():
            yield from (f"## {name}", "", f"`{_signature(name, entry)}`", "")
            yield from _docstring(entry)
            if key == "codec":
                yield from (f"Up: {entry.up}. Down: {entry.down}.", "")


class Columns(Generated):
    """Columns of rounds.csv."""

    def lines(self) -> Iterator[str]:
        """Yield a table."""
        yield from table(
            (
                "column",
                "title in tables and figures",
                "unit in the file",
                "unit when shown",
                "a run's value",
            ),
            (
                (
                    f"`{one.name}`",
                    one.title,
                    UNITS.get(one.unit, one.unit),
                    SHOWN[one.unit][0] or "-",
                    "sum over rounds" if one.adds_up else "last round",
                )
                for one in METRICS
            ),
        )


class Fields(Generated):
    """Fields of a dataclass, with types and defaults."""

    def lines(self) -> Iterator[str]:
        """Yield its docstring and a table."""
        module, _, name = self.arguments[0].rpartition(".")
        described = getattr(import_module(module), name)
        yield from _docstring(described)
        yield from table(
            ("column", "type", "where nothing happened"),
            (
                (
                    f"`{one.name}`",
                    f"`{one.type}`",
                    "-" if one.default is MISSING else code(repr(one.default)),
                )
                for one in fields(described)
            ),
        )


class Commands(Generated):
    """Commands of the command line, as their ``--help`` has them."""

    def lines(self) -> Iterator[str]:
        """Yield a section for each command."""
        for name, command in commands().items():
            usage = " ".join(
                command.collect_usage_pieces(command.make_context(name, [], resilient_parsing=True))
            )
            yield from (f"## fl-split {name}", "", "```text", f"fl-split {name} {usage}", "```", "")
            for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
                yield from (_plain(paragraph), "")
            told = [(one, _help(command, one)) for one in command.params if one.name != "help"]
            rows = [(_name(one), _plain(text)) for one, text in told if text]
            yield from table(("argument or option", "what it is"), rows) if rows else ()


class Api(Generated):
    """What a module exports by ``__all__``; nothing is said where it exports nothing."""

    def lines(self) -> Iterator[str]:
        """Yield autodoc's directives."""
        module = import_module(self.arguments[0])
        for name in getattr(module, "__all__", ()):
            yield from _autodoc(self.arguments[0], name, getattr(module, name))


class Classes(Generated):
    """Classes whose paths stand in the content, one a line."""

    def lines(self) -> Iterator[str]:
        """Yield autodoc's directives."""
        for path in self.content:
            module, _, name = path.rpartition(".")
            yield from _autodoc(module, name, getattr(import_module(module), name))


def commands() -> dict[str, Any]:
    """Return the commands of ``fl-split`` by name."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield a Markdown table."""
    yield from ("| " + " | ".join(head) + " |", "|" + "---|" * len(head))
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""


def code(text: str) -> str:
    """Write `text` as code; an empty string has two quotes."""
    return f"`{text}`"


def _values(key: str, schema: dict[str, Any]) -> str:
    """Say what a key may be set to."""
    if key in SPEC_TABLES:
        return "spec, or several with `|`" if key in CHAINS else "spec"
    kinds = [KINDS[one["type"]] for one in schema.get("anyOf", [schema])]
    limits = [text.format(schema[name]) for name, text in RANGES.items() if name in schema]
    return ", ".join([" or ".join(kinds), *limits])


def _signature(name: str, entry: Callable[..., Any]) -> str:
    """Write down how a spec names `entry`, without what the experiment fills in."""
    told = []
    for argument, parameter in inspect.signature(entry).parameters.items():
        if argument not in FILLED_IN:
            needed = parameter.default is inspect.Parameter.empty
            told.append(argument if needed else f"{argument}={parameter.default!r}")
    return f"{name}({', '.join(told)})"


def _docstring(entry: Callable[..., Any]) -> Iterator[str]:
    """Yield the docstring of `entry`; of another project's class the first paragraph."""
    target = entry.func if isinstance(entry, partial) else entry
    text = inspect.cleandoc(target.__doc__ or "")
    if target.__module__.startswith(("flwr", "flwr_datasets")):
        text = text.split("\n\n")[0]
    config: Any = Config(napoleon_use_param=False, napoleon_use_ivar=True)
    yield from ("````{eval-rst}", *NumpyDocstring(text, config).lines(), "````", "")


def _autodoc(module: str, name: str, target: Any) -> Iterator[str]:
    """Yield a directive of autodoc for what `module` calls `name`."""
    kind = "class" if inspect.isclass(target) else "function" if callable(target) else "data"
    yield from ("````{eval-rst}", f".. auto{kind}:: {module}.{name}")
    yield from ("   :members:",) if kind == "class" else ()
    yield from ("````", "")


def _help(command: Any, option: Any) -> str:
    """Return the help of an argument or option; click 8.5 drops that of typer's arguments."""
    if text := getattr(option, "help", None):
        return str(text)
    hints = get_type_hints(inspect.unwrap(command.callback), include_extras=True)
    notes = getattr(hints.get(option.name), "__metadata__", ())
    return next((str(note.help) for note in notes if getattr(note, "help", None)), "")


def _plain(text: str) -> str:
    """Return help text on one line, as Markdown: what stands out there is code."""
    return " ".join(render(re.sub(r"\[/?b]", "`", text)).plain.split())


def _name(option: Any) -> str:
    """Return an argument's name, or an option's with its value."""
    if option.param_type_name == "argument":
        return code(option.make_metavar(None) if option.metavar is None else option.metavar)
    return code(", ".join(option.opts))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    for kind in (Api, Classes, Columns, Commands, Fields, Keys, Specs):
        app.add_directive(kind.__name__.lower(), kind)
    return {"parallel_read_safe": True}
