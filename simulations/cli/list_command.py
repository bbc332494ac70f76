"""``fl-split list``: all that can be combined, one table of it, or one entry."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fl_split.spec_errors import nearest
from simulations.cli.terminal import door, out, quiet
from simulations.runs import outline
from simulations.runs.outline import Outline, UnreadableError
from simulations.runs.paths import expanded

app = typer.Typer()

KEYS = {
    "codecs": "codec",
    "cuts": "cut",
    "channels": "channel",
    "strategies": "strategy",
    "aggregations": "aggregation",
    "budgets": "budget",
    "partitions": "partition",
    "skews": "skew",
    "datasets": "dataset",
    "models": "model",
    "optimisers": "head_optimizer",
    "exits": "exits",
    "experts": "experts",
    "phases": "phases",
    "schedules": "schedule",
    "clips": "clip",
    "sparsities": "sparsity",
    "augmentations": "augment",
    "selections": "tokens",
    "engines": "engine",
    "policies": "policy",
    "systems": "system",
    "tracking": "tracking",
}
"""Categories that can be listed, and the key that names an entry of each; `keys` is one more."""

ALSO = {"downlink": "codecs", "down_channel": "channels", "tail_optimizer": "optimisers"}
"""Keys whose entries are those of another key, and the category that lists them."""

TITLES = {
    "aggregations": "Aggregation (aggregation)",
    "augmentations": "Augmentations (augment)",
    "channels": "Channels (channel, down_channel)",
    "clips": "Clipping (clip)",
    "codecs": "Codecs (codec, and what only packs also as downlink)",
    "cuts": "Laws of cuts (cut)",
    "datasets": "Data sets (dataset)",
    "policies": "Policies (fl-split infer --policy)",
    "selections": "Selections of tokens (tokens)",
    "optimisers": "Optimisers (head_optimizer, tail_optimizer)",
}

DEVICES = "devices"
"""The kinds of devices that a system can name: numbers, no entries of a key."""

WHAT = typer.Argument(
    metavar="[WHAT]",
    help=f"One of {', '.join([*KEYS, 'keys', DEVICES])}, or the name of an entry, as adc.",
    show_default=False,
)


PLUGINS = typer.Option("--plugin", help="Python file with parts of your own.")


@app.command("list")
def list_(
    what: Annotated[str | None, WHAT] = None,
    plugins: Annotated[list[str] | None, PLUGINS] = None,
) -> None:
    """Show every codec, strategy, partition, data set, model, optimiser and key, one kind, or one.

    Parts of installed packages, and of files that [b]--plugin[/b] names, say where they are from.

    Examples: [b]fl-split list codecs[/b], [b]fl-split list adc[/b]
    """
    with door():
        found = _found(what, _tables(plugins or []))
    for part in found:
        out.print(part)


def _tables(plugins: Sequence[str]) -> Mapping[str, Mapping[str, Outline]]:
    """Return all tables, without importing them if their source can be read."""
    if not plugins:
        with suppress(UnreadableError):
            others = {
                "cut": outline.table("simulations.runs.cut_laws", "CUTS"),
                "policy": outline.table("simulations.inference.policies", "POLICIES"),
            }
            return {**outline.tables(), **others}
    with quiet():
        from fl_split.foreign import origin, plug_in, told
        from simulations.inference.policies import POLICIES
        from simulations.runs.cut_laws import CUTS
        from simulations.runs.parts import SPEC_TABLES
    files = [expanded(file) for file in plugins]
    plug_in([*map(str, files)])
    modules = [file.stem for file in files]
    return {
        key: {
            **{name: Outline.of(entry) for name, entry in table.items()},
            **{name: Outline.of(one, told(origin(one))) for name, one in table.foreign(modules)},
        }
        for key, table in {**SPEC_TABLES, "cut": CUTS, "policy": POLICIES}.items()
    }


def _found(what: str | None, tables: Mapping[str, Mapping[str, Outline]]) -> list[RenderableType]:
    """Return what is to be shown: everything, a category by its name or key, or entries."""
    named = {*KEYS.values(), *ALSO}
    categories = {**KEYS, **{key: key for key in tables if key not in named}}
    if what is None:
        return [*(_category(name, key, tables[key]) for name, key in categories.items()), _keys()]
    by_key = {**{key: name for name, key in categories.items()}, **ALSO, "key": "keys"}
    name = by_key.get(what, what)
    if name == "keys":
        return [_keys()]
    if name == DEVICES:
        return [_devices()]
    if name in categories:
        return [_category(name, categories[name], tables[categories[name]])]
    entries = {(key, what): tables[key][what] for key in categories.values() if what in tables[key]}
    if not entries and (device := _device(what)):
        return [device]
    if not entries:
        known = [*categories, "keys", DEVICES]
        near = nearest(what, [*known, *(name for table in tables.values() for name in table)])
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(f"unknown category or entry {what!r}; {hint}Known: {', '.join(known)}")
    return [_entry(key, name, entry) for (key, name), entry in entries.items()]


def _devices() -> Table:
    """Show the table of devices; what nobody has read in a source has a star."""
    from simulations.system.devices import WATTS, known
    from simulations.system.quantities import told

    table = Table(title="Devices, for devices(name) and mix(name=share); *: assumed")
    for title in ("name", "what it is", "sustained", "memory", "backward", "W: compute",
                  "send", "receive", "idle"):  # fmt: skip
        table.add_column(title, overflow="fold", justify="left" if title[0] in "nw" else "right")
    for name, device in known().items():

        def cell(key: str, text: str, assumed: Sequence[str] = device.assumed) -> str:
            return f"{text}*" if key in assumed else text

        table.add_row(
            name, device.title, cell("sustained", told(device.flops, "FLOP/s")),
            cell("memory", told(device.memory, "B")), cell("backward", f"{device.backward:g}"),
            *(cell(key, f"{getattr(device, key):g}") for key in WATTS),
        )  # fmt: skip
    return table


def _device(name: str) -> Group | None:
    """Show one device with its sources; None if none is called so."""
    from simulations.system.devices import known
    from simulations.system.quantities import told

    device = known().get(name)
    if device is None:
        return None
    lines = [
        device.title,
        f"Sustained {told(device.flops, 'FLOP/s')}, memory {told(device.memory, 'B')}, "
        f"backward over forward {device.backward:g}.",
        f"Watts: compute {device.compute_watts:g}, send {device.send_watts:g}, receive "
        f"{device.receive_watts:g}, idle {device.idle_watts:g}.",
        f"Assumed: {', '.join(device.assumed) or 'nothing'}.",
        device.source.strip(),
    ]
    return Group(Text(f"devices({name!r})", style="bold"), Text("\n".join(lines)), "")


def _category(category: str, key: str, entries: Mapping[str, Outline]) -> Table:
    title = TITLES.get(category, f"{category.capitalize()} ({key})")
    table = Table(title=title, title_justify="left", show_lines=True)
    for column in ("spec", "what it is"):
        table.add_column(column, overflow="fold")
    for name, entry in entries.items():
        about = entry.doc.split("\n\n")[0].replace("\n", " ") + _ways(key, entry)
        about += f"\nNot ours: {entry.source}." if entry.source else ""
        table.add_row(escape(_signature(name, entry, key)), escape(about))
    return table


def _entry(key: str, name: str, entry: Outline) -> Group:
    """Show one entry with all that its docstring says."""
    spec = Text(f"{key} = {_signature(name, entry, key)}", style="bold")
    return Group(spec, Text(entry.doc + _ways(key, entry)), "")


def _ways(key: str, entry: Outline) -> str:
    """Say what goes up and down, of a codec."""
    if key != "codec":
        return ""
    return f"\nUp: {entry.constants['up']}. Down: {entry.constants['down']}."


def _keys() -> Table:
    table = Table("key", "default", "what it is", title="Keys", title_justify="left")
    for name, key in outline.keys().items():
        table.add_row(name, repr(key.default), key.about)
    return table


def _signature(name: str, entry: Outline, key: str) -> str:
    """Write down how `entry` is named, without what the experiment fills in."""
    filled_in = outline.constant("simulations.data.partitioners", "FILLED_IN")
    parts = []
    for argument, parameter in inspect.signature(entry).parameters.items():
        if key != "partition" or argument not in filled_in:
            is_needed = parameter.default is inspect.Parameter.empty
            parts.append(argument if is_needed else f"{argument}={parameter.default!r}")
    return f"{name}({', '.join(parts)})"
