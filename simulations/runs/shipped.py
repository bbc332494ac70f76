"""Shipped configurations, called by name from any folder: ``quickstart``."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from fl_split.spec_errors import SpecError, nearest
from simulations.runs.paths import expanded

STUDIES = ("compare", "pareto", "sweep")
"""Tables of a configuration that ask for several runs, and the commands that make them."""


@dataclass(frozen=True)
class Shipped:
    """A configuration that comes with the package.

    Attributes
    ----------
    about : str
        Its first line of comment.
    command : str
        What runs it: run, compare, pareto or sweep.
    """

    path: Path
    about: str
    command: str

    @property
    def name(self) -> str:
        """What it is called."""
        return self.path.stem


def folder() -> Path:
    """Return the folder of configurations: in the package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def shipped() -> list[Shipped]:
    """Return all shipped configurations, by name."""
    return [_read(path) for path in sorted(folder().glob("*.toml"))]


def find(name_or_path: str | Path) -> Path:
    """Return the file that a path names, or else the shipped configuration of that name.

    Raises
    ------
    SpecError
        There is neither.
    """
    path = expanded(name_or_path)
    if os.path.isfile(path):
        return path
    if os.path.exists(path):
        raise SpecError(f"{str(path)!r} is a folder or a device; give a configuration file")
    name, known = str(name_or_path), {one.stem: one for one in folder().glob("*.toml")}
    if name in known:
        return known[name]
    if "=" in name:
        raise SpecError(f"no configuration file {name!r}; the configuration comes first, then keys")
    near = nearest(path.stem, known)
    hint = f"did you mean {near!r}? " if near else ""
    raise SpecError(
        f"no configuration file {name!r}; {hint}`fl-split configs` lists those of fl-split"
    )


def _read(path: Path) -> Shipped:
    text = path.read_text(encoding="utf-8")
    about = next((line for line in text.splitlines() if line.startswith("#")), "")
    tables = tomllib.loads(text).keys()
    command = next((study for study in STUDIES if study in tables), "run")
    return Shipped(path, about.removeprefix("#").strip(), command)
