"""Settings as people write them: a file, and ``key=value`` on the command line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_split.spec_errors import SpecError
from simulations.runs.names import check_apart, check_name
from simulations.runs.paths import placed, same_origin, written
from simulations.runs.shipped import STUDIES, find
from simulations.runs.toml_faults import check_values, explained, read_text


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a configuration file; its texts know its folder, see :mod:`simulations.runs.paths`.

    Raises
    ------
    SpecError
        The file is missing, is no TOML in UTF-8, or has a value of the wrong type.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise SpecError(f"no configuration file {str(path)!r}") from None
    except OSError as error:
        raise SpecError(f"{str(path)!r} cannot be read: {error.strerror or error}") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: {explained(text, error)}") from None
    try:
        check_values(text, values)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    folder = path.absolute().parent
    if "plugins" in values:
        files = plugin_files(values["plugins"])
        values["plugins"] = [_plugin(name, folder) for name in files]
    return {key: written(value, folder) for key, value in values.items()}


def plugin_files(plugins: Any) -> list[str]:
    """Take the value of `plugins` apart: a list, or names with commas between."""
    found = plugins.split(",") if isinstance(plugins, str) else plugins
    if isinstance(found, Path):
        return [str(found)]
    if not isinstance(found, list | tuple):
        raise SpecError(f"plugins must be a list of Python files, got {plugins!r}")
    return [name for text in found if (name := str(text).strip())]


def _plugin(name: str, folder: Path) -> str:
    """Return the absolute path of a plugin that a configuration in `folder` names."""
    found = placed(name, "plugins", (folder, Path.cwd()))
    if not Path(found).is_absolute():
        raise SpecError(f"plugins: no file {name!r} in {str(folder)!r} or {str(Path.cwd())!r}")
    return found


def rows_of(
    config: str | Path, values: Mapping[str, Any], common: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and keys of each run that `values` ask for: one, or those of ``[[compare]]``.

    `config` names them in errors, and a run alone; `common` holds for all of them.

    Raises
    ------
    SpecError
        ``compare`` is no list of tables, a name is none of a folder, or a key is in `common`
        and in a table.
    """
    base = {key: value for key, value in values.items() if key != "compare"}
    rows = values.get("compare", None)
    if rows is None:
        check_name(Path(config).stem, config)
        yield Path(config).stem, {**base, **common}
        return
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SpecError(f"{config}: compare must be a list of tables, [[compare]]")
    for number, row in enumerate(rows, start=1):
        own = dict(row)
        name = str(own.pop("name", f"run-{number}"))
        check_name(name, config)
        for key in common:
            if key in own:
                raise SpecError(f"{key} differs between the runs of {config}; set it there")
        yield name, {**base, **common, **own}


def several(
    sources: Iterable[tuple[str | Path, Mapping[str, Any]]], common: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the keys of each run by its name, of all `sources`: what names them, and values.

    Raises
    ------
    SpecError
        There is no run, or two have one name; or as :func:`rows_of`.
    """
    rows = [row for config, values in sources for row in rows_of(config, values, common)]
    check_apart(name for name, _ in rows)
    if not rows:
        raise SpecError("give at least one run, or a configuration file")
    return dict(rows)


def read_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn ``key=value`` arguments into values; what is no TOML literal is a string.

    Raises
    ------
    SpecError
        An argument without ``=``, or a key that is given twice.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not key:
            raise SpecError(f"expected key=value, got {pair!r}")
        if key in overrides:
            raise SpecError(f"{key} is given twice; leave one out")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        overrides[key] = value
    return overrides


def split_values(text: str) -> list[str]:
    """Split at commas that stand outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts]


def read_values(key: str, text: str) -> list[Any]:
    """Read ``a,b,c`` and ``0..4``, and what mixes them.

    Raises
    ------
    SpecError
        A value is empty, or a range runs backwards.
    """
    values: list[Any] = []
    for part in split_values(text):
        if not part:
            raise SpecError(f"{key}: empty value in {text!r}")
        if ends := re.fullmatch(r"(-?\d+)\.\.(-?\d+)", part):
            first, last = map(int, ends.groups())
            if last < first:
                raise SpecError(f"{key}: {part!r} runs backwards")
            values += range(first, last + 1)
            continue
        value = read_overrides([f"{key}={part}"])[key]
        found = value if isinstance(value, list) else [value]
        values += [same_origin(one, text) if isinstance(one, str) else one for one in found]
    return values


def keys_of_data(dataset: Any) -> dict[str, Any]:
    """Take a configuration file for what it says of one run, anything else for a data set."""
    if isinstance(dataset, str | Path) and str(dataset).endswith(".toml"):
        values = read_toml(find(dataset))
        return {key: value for key, value in values.items() if key not in STUDIES}
    return {"dataset": dataset}
