"""``fl-split list``: all that can be combined, or one table of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from simulations.cli.terminal import door, out

app = typer.Typer()

KEYS = {
    "codecs": "codec",
    "strategies": "strategy",
    "aggregations": "aggregation",
    "budgets": "budget",
    "partitions": "partition",
    "skews": "skew",
    "datasets": "dataset",
    "models": "model",
    "optimisers": "head_optimizer",
    "engines": "engine",
    "tracking": "tracking",
}
"""Categories that can be listed, and the key that names an entry of each; `keys` is one more."""

ALSO = {"downlink": "codecs", "tail_optimizer": "optimisers"}
"""Keys whose entries are those of another key, and the category that lists them."""

TITLES = {
    "aggregations": "Aggregation (aggregation)",
    "codecs": "Codecs (codec, and what only packs also as downlink)",
    "datasets": "Data sets (dataset)",
    "optimisers": "Optimisers (head_optimizer, tail_optimizer)",
}

CATEGORY = typer.Argument(help=f"One of {', '.join([*KEYS, 'keys'])}.", show_default=False)


@app.command("list")
def list_(category: Annotated[str | None, CATEGORY] = None) -> None:
    """Show every codec, strategy, partition, data set, model, optimiser and key, or one kind.

    Example: [b]fl-split list codecs[/b]
    """
    with door():
        chosen = [*_keys_by_category(), "keys"] if category is None else [_category(category)]
        tables = [_keys() if name == "keys" else _entries(name) for name in chosen]
    for table in tables:
        out.print(table)


def _category(text: str) -> str:
    """Find a category by its name or by its key."""
    from fl_split.spec_errors import unknown

    known = _keys_by_category()
    by_key = {**{key: name for name, key in known.items()}, **ALSO, "key": "keys"}
    name = by_key.get(text, text)
    if name not in {*known, "keys"}:
        raise ValueError(unknown("category", text, [*known, "keys"]))
    return name


def _keys_by_category() -> dict[str, str]:
    """Return KEYS and, under its own name, every other key that has a table."""
    from simulations.runs.experiment import SPEC_TABLES

    named = {*KEYS.values(), *ALSO}
    return {**KEYS, **{key: key for key in SPEC_TABLES if key not in named}}


def _entries(category: str) -> Table:
    from simulations.runs.experiment import SPEC_TABLES

    key = _keys_by_category()[category]
    title = TITLES.get(category, f"{category.capitalize()} ({key})")
    table = Table(title=title, title_justify="left", show_lines=True)
    for column in ("spec", "what it is"):
        table.add_column(column, overflow="fold")
    for name, entry in SPEC_TABLES[key].items():
        about = _summary(entry)
        if key == "codec":
            about += f"\nUp: {entry.up}. Down: {entry.down}."
        table.add_row(escape(_signature(name, entry, key)), escape(about))
    return table


def _keys() -> Table:
    from simulations.runs.experiment import Experiment

    table = Table("key", "default", "what it is", title="Keys", title_justify="left")
    for name, field in Experiment.model_fields.items():
        table.add_row(name, repr(field.default), field.description)
    return table


def _signature(name: str, entry: Callable[..., Any], key: str) -> str:
    """Write down how `entry` is named, without what the experiment fills in."""
    from fl_split.specs import signature
    from simulations.data.partitioners import FILLED_IN

    parts = []
    for argument, parameter in signature(entry).parameters.items():
        if key != "partition" or argument not in FILLED_IN:
            is_needed = parameter.default is inspect.Parameter.empty
            parts.append(argument if is_needed else f"{argument}={parameter.default!r}")
    return f"{name}({', '.join(parts)})"


def _summary(entry: Callable[..., Any]) -> str:
    target = entry.func if isinstance(entry, partial) else entry
    return (target.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
