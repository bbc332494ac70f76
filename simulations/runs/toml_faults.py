"""What is wrong with a configuration file, in one line: which line, and what to write instead."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fl_split.spec_errors import SpecError, nearest
from simulations.runs.outline import UnreadableError, keys
from simulations.runs.shipped import STUDIES

UTF8, UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
"""Marks that some editors put before a text."""

DOUBLE, SINGLE = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033", "\u2018\u2019\u201a\u201b\u2032"
QUOTES = str.maketrans(DOUBLE + SINGLE, '"' * len(DOUBLE) + "'" * len(SINGLE))
"""Quotes of word processors, and the straight ones that TOML has."""

WORDS = {
    "True": "true", "False": "false", "TRUE": "true", "FALSE": "false",
    "yes": "true", "no": "false", "on": "true", "off": "false",
}  # fmt: skip

NAMED = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}

JOINED = {"augment": " | ", "freeze": ", "}
"""Keys of which several values are one, and what stands between."""

LONGEST = 80
"""Characters of a line that are shown."""


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte-order mark, with any ends of lines.

    Raises
    ------
    SpecError
        It is in another encoding.
    OSError
        It cannot be read.
    """
    data = path.read_bytes().removeprefix(UTF8)
    if data.startswith(UTF16) or b"\0" in data:
        raise SpecError(f"{path} is UTF-16, or no text; save it as UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start)
        line = data.split(b"\n")[number].decode("cp1252", errors="replace")
        raise SpecError(
            f"{path}: line {number + 1}, `{_cut(line)}`: not UTF-8, probably Latin-1 or "
            "Windows-1252; save the file as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def explained(text: str, error: tomllib.TOMLDecodeError) -> str:
    """Say which line of `text` is no TOML, why, and what to write instead."""
    lines = text.splitlines() or [""]
    found = re.search(r"\(at line (\d+), column \d+\)", str(error))
    number = min(int(found[1]) if found else len(lines), len(lines))
    line = lines[number - 1]
    reason = re.sub(r" \(at .*\)$", "", str(error))
    if text.lstrip().startswith("{"):
        return 'this is JSON; write TOML, a line for each key: rounds = 3, dataset = "digits"'
    if "overwrite" in reason or "declare" in reason or "twice" in reason:
        advice = _twice(line, lines[: number - 1])
    else:
        advice = next((advice for advice in _advice(line) if advice), f"no TOML: {reason}")
    return f"line {number}, `{_cut(line)}`: {advice}"


def _twice(line: str, before: list[str]) -> str:
    key = line.strip().strip("[]").partition("=")[0].strip()
    pattern = re.compile(rf"\s*\[*\s*{re.escape(key)}\s*(=|\])")
    first = next((number for number, one in enumerate(before, 1) if pattern.match(one)), 0)
    where = f", first in line {first}" if first else ""
    if line.lstrip().startswith("["):
        return f"{key} is given already{where}; a key is no section: write {key} = ... once"
    return f"{key} is given twice{where}; leave one out"


def _advice(line: str) -> Iterator[str]:
    """Yield what may be wrong with a line that is no TOML, the likeliest first."""
    if (straight := line.translate(QUOTES)) != line and _is_toml(straight):
        yield f"curly quotes; write `{straight.strip()}`"
    if pair := re.match(r"""\s*["']?([\w-]+)["']?\s*:\s*([^=]*?),?\s*$""", line):
        yield f"a colon where TOML has =; write `{pair[1]} = {_value(pair[2])}`"
    pair = re.match(r"\s*([\w.-]+)\s*=\s*(.*?)\s*$", line)
    if pair is None:
        yield "expected key = value" if "=" not in line else ""
        return
    key, value = pair[1], pair[2]
    if value in {"None", "null", "nil"}:
        yield "TOML has no value for nothing; leave the line out"
    if not value:
        yield "no value; write one after ="
    if "\\" in value:
        slashed = f"{key} = {value}".replace("\\", "/")
        other = f"; write `{slashed}`" if _is_toml(slashed) else ""
        yield f"a backslash means something else in TOML{other or '; write / in its place'}"
    if re.search(r"\s[\w.-]+\s*=", value) and value[:1] not in {"[", "{"}:
        yield "one key in a line; write the next on a line of its own"
    if _is_toml(bare := f"{key} = {value.rstrip(',; ')}"):
        yield f"nothing stands behind a value; write `{bare}`"
    if value[:1] in {'"', "'"}:
        yield "the text has no quote at its end, or more behind it; quote inside it by the other"
    if value[:1] not in {"[", "{"}:
        yield f"write `{key} = {_value(value)}`"


def _value(text: str) -> str:
    """Write a value down as TOML."""
    text = WORDS.get(text, text)
    return text if _is_toml(f"value = {text}") else json.dumps(text, ensure_ascii=False)


def _is_toml(text: str) -> bool:
    with suppress(tomllib.TOMLDecodeError):
        return bool(tomllib.loads(text))
    return False


def check_values(text: str, values: Mapping[str, Any]) -> None:
    """Raise SpecError for sections that are none, and values of another type than their key has.

    Keys that nobody knows are somebody else's to refuse.
    """
    for key, value in values.items():
        parts = value if isinstance(value, list) else [value]
        if key not in STUDIES and parts and isinstance(parts[0], dict):
            raise SpecError(_section(text, key, parts[0]))
    rows = values.get("compare")
    known = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    with suppress(UnreadableError):
        for row in ({k: v for k, v in values.items() if k not in STUDIES}, *known):
            for key, value in row.items():
                _check_type(text, key, value)


def _section(text: str, key: str, value: Mapping[str, Any]) -> str:
    where = _line_of(text, rf"\s*\[+\s*{re.escape(key)}\s*[\].]", rf"\s*{re.escape(key)}\s*\.")
    start = f"{where}[{key}] is no section"
    name = next((str(value[k]) for k in ("name", "type", "kind") if k in value), "")
    given = {k: v for k, v in value.items() if k not in {"name", "type", "kind"}}
    parts = ", ".join(f"{k}={v!r}" for k, v in given.items())
    with suppress(UnreadableError):
        if key in keys():
            spec = (name or "NAME") + (f"({parts})" if parts else "")
            return f"{start}; write `{key} = {json.dumps(spec, ensure_ascii=False)}` above"
    if near := nearest(key, STUDIES):
        return f"{start}; did you mean [{near}]?"
    listed = ", ".join(value) or "its keys"
    return f"{start}: keys stand outside sections; write {listed} above, without [{key}]"


def _check_type(text: str, key: str, value: Any) -> None:
    if (known := keys().get(key)) is None or key in {"plugins", "cut"}:
        return
    kind = type(known.default)
    fits = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}.get(kind, (object,))
    if known.may_be_text:
        fits = int, str
    if isinstance(value, fits) and (not isinstance(value, bool) or bool in fits):
        return
    where = _line_of(text, rf"\s*{re.escape(key)}\s*=", value={key: value})
    spec = json.dumps(known.default)
    if isinstance(value, list) and key in JOINED:
        advice = f"write `{key} = {json.dumps(JOINED[key].join(map(str, value)))}`"
    elif kind is str and "(" in str(known.default) and not isinstance(value, list):
        advice = f"as in `{key} = {spec}`; `fl-split list` names others"
    elif isinstance(value, list):
        advice = f"several values stand in a table: [sweep], and below it {key} = [...]"
    elif (right := _meant(value, kind)) is not None:
        advice = f"write `{key} = {right}`"
    else:
        advice = f"as in `{key} = {spec}`"
    raise SpecError(f"{where}{key} must be {NAMED.get(kind, kind.__name__)}; {advice}")


def _meant(value: Any, kind: type) -> str | None:
    """Return what a value of another type was meant to be, as TOML."""
    if isinstance(value, bool | dict):
        return None
    if kind is str:
        return json.dumps(str(value))
    if kind is bool:
        return {"true": "true", "false": "false"}.get(str(value).lower())
    with suppress(ValueError, OverflowError, TypeError):
        number = float(value)
        if kind is float or number == int(number):
            return str(kind(number))
    return None


def _line_of(text: str, *patterns: str, value: Mapping[str, Any] | None = None) -> str:
    """Name the line that fits one of the patterns, and holds `value` if that is given."""
    found = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if any(re.match(pattern, line) for pattern in patterns)
    ]
    exact = [one for one in found if value is not None and _holds(one[1], value)]
    for number, line in exact or found:
        return f"line {number}, `{_cut(line)}`: "
    return ""


def _holds(line: str, value: Mapping[str, Any]) -> bool:
    with suppress(tomllib.TOMLDecodeError):
        return tomllib.loads(line) == value
    return False


def _cut(line: str) -> str:
    line = line.strip()
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
