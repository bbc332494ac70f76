"""Finds files of the user that hide our packages: `strategies`, `simulations` are common names."""

from __future__ import annotations

from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

NAMES = ("strategies", "simulations")
"""Our packages beside this one."""

HOME = Path(__file__).resolve().parents[1]
"""Where all our packages are: an installation, a checkout, or an app's folder of `flwr run`."""


class ClashError(ImportError):
    """Something that is not ours has the name of one of our packages, and is found first."""


def check() -> None:
    """Raise ClashError unless Python finds our packages under our names."""
    for name in NAMES:
        try:
            spec = find_spec(name)
        except ValueError:  # a script that set aside what it was loaded by
            spec = PathFinder.find_spec(name)
        if spec is None or not _is_ours(spec, name):
            raise ClashError(_sentence(name, spec))


def check_folder(folder: Path) -> None:
    """Raise ClashError if Python would find others under our names, were `folder` first to look.

    A folder without ``__init__.py`` hides nothing: Python prefers ours.
    """
    for name in NAMES:
        spec = PathFinder.find_spec(name, [str(folder)])
        if spec is not None and spec.origin is not None and not _is_ours(spec, name):
            raise ClashError(_sentence(name, spec))


def _is_ours(spec: ModuleSpec, name: str) -> bool:
    return spec.origin is not None and Path(spec.origin).resolve() == HOME / name / "__init__.py"


def _sentence(name: str, spec: ModuleSpec | None) -> str:
    if spec is None or spec.origin is None:
        return f"fl-split's package {name!r} is missing in {str(HOME)!r}; install fl-split again"
    file = Path(spec.origin)
    there = file.parent if file.stem == "__init__" else file
    return (
        f"{str(there)!r} hides fl-split's package {name!r}, since Python looks there first; rename "
        "it, run from another folder, or take its folder off PYTHONPATH"
    )
