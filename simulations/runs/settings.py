"""Settings as people write them: a file, and ``key=value`` on the command line."""

from __future__ import annotations

import re
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from fl_split.spec_errors import SpecError


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a configuration file; files that `plugins` names lie beside it, or where it says.

    Raises
    ------
    SpecError
        The file is missing or is no TOML.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        if "plugins" in values:
            values["plugins"] = _beside(Path(path), values["plugins"])
        return values
    except OSError:
        raise SpecError(f"no configuration file {str(path)!r}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None


def plugin_files(plugins: Any) -> list[str]:
    """Take the value of `plugins` apart: a list, or names with commas between."""
    found = plugins.split(",") if isinstance(plugins, str) else plugins
    if isinstance(found, Path):
        return [str(found)]
    if not isinstance(found, list | tuple):
        raise SpecError(f"plugins must be a list of Python files, got {plugins!r}")
    return [name for text in found if (name := str(text).strip())]


def _beside(config: Path, plugins: Any) -> list[str]:
    """Return absolute paths of plugins, from the folder of the configuration on."""
    files = [Path(name).expanduser() for name in plugin_files(plugins)]
    return [str((config.parent / file).absolute()) for file in files]


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
        yield Path(config).stem, {**base, **common}
        return
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SpecError(f"{config}: compare must be a list of tables, [[compare]]")
    for number, row in enumerate(rows, start=1):
        own = dict(row)
        name = str(own.pop("name", f"run-{number}"))
        if name in {"", ".", ".."} or Path(name).name != name:
            raise SpecError(f"{config}: name must be usable as a folder's, got {name!r}")
        for key in common:
            if key in own:
                raise SpecError(f"{key} differs between the runs of {config}; set it there")
        yield name, {**base, **common, **own}


def read_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn ``key=value`` arguments into values; what is no TOML literal is a string.

    Raises
    ------
    SpecError
        An argument without ``=``.
    """
    overrides = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise SpecError(f"expected key=value, got {pair!r}")
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
        values += value if isinstance(value, list) else [value]
    return values


def chosen_folder(*wanted: Any) -> Path:
    """Where results go: the first that is `wanted`, or a new folder named after the time."""
    for name in wanted:
        if name:
            return Path(str(name)).expanduser()
    folder = Path(time.strftime("runs/%Y%m%d-%H%M%S"))
    names = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return folder if not folder.exists() else next(name for name in names if not name.exists())
