"""Files grouped into splits by what their names, or those of their folders, say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simulations.data.splits import Decision, kind
from simulations.data.walking import listed


def by_split(files: Sequence[Path], place: Path) -> dict[str, list[Path]]:
    """Group files below `place` by split; all are to train on if no name says anything."""
    kinds = {file: _kind(file, place) for file in sorted(files, key=str)}
    if not any(kinds.values()):
        return {"train": [*kinds]}
    found: dict[str, list[Path]] = {}
    for file, what in kinds.items():
        found.setdefault(what or file.stem, []).append(file)
    return found


def on_splits(files: Sequence[Path], place: Path) -> list[Decision]:
    """Say which files are of which split, where there are several."""
    said = [
        f"{split} is {listed([str(file.relative_to(place)) for file in several])}"
        for split, several in by_split(files, place).items()
    ]
    text = f"as the names of files say: {'; '.join(said)}"
    return [Decision("splits", text, "dataset=...(train='...', test='...')")] if said[1:] else []


def _kind(file: Path, place: Path) -> str:
    parts = file.relative_to(place).with_suffix("").parts if file != place else ()
    return next((what for part in reversed(parts) if (what := kind(part))), "")
