"""Paths as people write them: with ``~``, relative to a configuration or to the working folder.

The rule: a relative path of a configuration file is looked for beside that file, then in the
working folder. All others are relative to the working folder, and so is ``out``.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unicodedata import category

from fl_split.spec_errors import SpecError

SHOWN = 60
"""Characters of a path that errors show of its end."""


ROOM = "x" * 240
"""As long as the longest path below a folder of results."""


class PathNotice(UserWarning):
    """Says which of two files was taken."""


class Written(str):
    """A text of a configuration file, which knows the folder of that file."""

    folder: Path

    def __new__(cls, text: str, folder: Path) -> Written:
        """Say where a text was written."""
        written = super().__new__(cls, text)
        written.folder = folder
        return written

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def written(values: Any, folder: Path) -> Any:
    """Mark all texts in `values` that may hold a path, which stands in quotes in a spec."""
    if isinstance(values, dict):
        return {key: written(value, folder) for key, value in values.items()}
    if isinstance(values, list):
        return [written(value, folder) for value in values]
    is_text = isinstance(values, str) and any(quote in values for quote in "'\"")
    return Written(values, folder) if is_text else values


def same_origin(text: str, origin: str) -> str:
    """Return `text`, a part of `origin`, as written where that was."""
    return Written(text, origin.folder) if isinstance(origin, Written) else text


def expanded(text: str | Path) -> Path:
    """Return the path that a text names, ``~`` replaced by the home folder.

    Raises
    ------
    SpecError
        It names none: it is empty, has letters that no path has, or an unknown user's home.
    """
    shown = str(text)
    if not shown:
        raise SpecError("an empty path; give a name")
    if strange := next((one for one in shown if category(one) in {"Cc", "Cs"}), ""):
        kind = "a byte that is not UTF-8" if "\ud800" <= strange <= "\udfff" else repr(strange)
        advice = "; write / in place of \\" if strange in "\a\b\f\n\r\t\v" else ""
        raise SpecError(f"{_end_of(shown)!a}: {kind} cannot stand in a path{advice}")
    try:
        return Path(shown).expanduser()
    except RuntimeError:
        raise SpecError(f"{shown!r}: no such user, or no home folder is known") from None


def placed(text: str, key: str, folders: Sequence[Path]) -> str:
    """Return the absolute path of what `text` names, looked for in `folders` one after the other.

    What is not there is left as it is, since it may be the name of something on a hub, unless
    it begins as only paths do, with ``~``, ``.`` or ``/``. Addresses are left alone.

    Raises
    ------
    SpecError
        `text` cannot be a path.
    """
    if not text or "://" in text:
        return text
    try:
        path = expanded(text)
    except SpecError as error:
        raise SpecError(f"{key}: {error}") from None
    if path.is_absolute():
        return str(path)
    there = [folder / path for folder in folders if os.path.exists(folder / path)]
    if not there:
        return str(_whole(folders[0] / path)) if text.startswith(".") else text
    first = _whole(there[0])
    for other in there[1:]:
        if not os.path.samefile(first, other):
            warnings.warn(
                f"{key}: {text!r} is both beside the configuration and in the working folder; "
                f"{str(first)!r} is taken, {str(_whole(other))!r} is not; an absolute path "
                "leaves no doubt",
                PathNotice,
                stacklevel=2,
            )
    return str(first)


def _whole(path: Path) -> Path:
    """Make a path absolute; links are followed only where it goes up."""
    return path.resolve() if ".." in path.parts else path.absolute()


def chosen_folder(given: str | Path | None, setting: Any = "") -> Path:
    """Return where results go: `given`, or the key `setting`, or a new folder named by the time.

    Raises
    ------
    SpecError
        No folder can be made there.
    """
    chosen = setting or None if given is None else given
    if chosen is None:
        folder = new_folder()
    else:
        try:
            folder = expanded(str(chosen))
        except SpecError as error:
            raise SpecError(f"out: {error}") from None
    check_place(folder)
    return folder


def new_folder() -> Path:
    """Name a folder after the time; its end tells apart runs that begin in the same second."""
    while True:
        folder = Path(time.strftime("runs/%Y%m%d-%H%M%S-") + secrets.token_hex(2))
        if not folder.exists():
            return folder


def check_place(folder: Path) -> None:
    """Raise SpecError unless `folder` is a folder to write in, or can be made; leave no trace.

    The system is asked by trying: each file system has limits of its own.
    """
    new = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "no right to write")
        with suppress(FileNotFoundError):
            os.stat(folder / ROOM)
    except OSError as error:
        raise SpecError(f"out: {_reason(folder, error)}") from None
    except RecursionError:  # a thousand folders in each other
        raise SpecError(f"out: {_reason(folder, OSError(errno.ENAMETOOLONG, ''))}") from None
    finally:
        for path in new:
            with suppress(OSError):
                path.rmdir()


def _reason(folder: Path, error: OSError) -> str:
    """Say why there can be no folder, and what to do."""
    shown = repr(_end_of(str(folder)))
    for path in (folder, *folder.absolute().parents):
        if os.path.islink(path) and not os.path.exists(path):
            return f"{str(path)!r} is a link that leads nowhere; give another folder or remove it"
        if os.path.exists(path):
            if not path.is_dir():
                return f"{str(path)!r} is a file; give a folder"
            break
    if error.errno == errno.ENAMETOOLONG:
        return f"{shown} is a longer name than the file system holds; give a shorter one"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"{shown} cannot be written to ({error.strerror}); give another folder"
    return f"cannot make {shown}: {error.strerror}; give another folder"


def _end_of(path: str) -> str:
    return path if len(path) <= SHOWN else f"...{path[-SHOWN:]}"
