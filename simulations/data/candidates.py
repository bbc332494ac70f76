"""Choosing among candidates: never in silence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from simulations.data.splits import Decision

LABELS = ("label", "labels", "class", "target", "category", "y")
"""Names of a column of labels; the first that is there comes first."""

IMAGES = ("image", "path", "file", "file_name", "filename", "image_path")
"""The same of images."""


def usual(names: Iterable[object], known: Sequence[str]) -> list[str]:
    """Return those of some names that are known, in capitals or not, the first known first."""
    found = [str(name) for name in names if str(name).lower() in known]
    return sorted(found, key=lambda name: known.index(name.lower()))


def chosen(found: Sequence[str], about: str, what: str, key: str) -> tuple[str, Decision]:
    """Take the first of some candidates, and say which others would do.

    Parameters
    ----------
    found : sequence of str
        Candidates, at least one, the best first.
    about, key : str
        As of a Decision.
    what : str
        What they are, in a word.
    """
    others = ", ".join(map(repr, found[1:]))
    also = f"; {others} would do too" if others else ""
    return found[0], Decision(about, f"{what} {found[0]!r}{also}", key, is_warning=bool(others))
