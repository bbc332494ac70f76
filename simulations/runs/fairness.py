"""Accuracy by class and by client: two files of a run, and columns that sum them up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fl_split.metrics import backward_transfer, jain, performance_gap, worst
from simulations.runs.files import DamagedError, append, read_table, write_whole

CLASSES, SHARDS = "classes.csv", "shards.csv"


class Fairness:
    """Write accuracies by class and by client, and sum them up.

    Parameters
    ----------
    rounds_done : int
        Go on after so many rounds; later rows in the files are forgotten.
    """

    def __init__(self, folder: Path, class_names: Sequence[str], rounds_done: int = 0) -> None:
        self.folder, self.class_names = folder, class_names
        self.best = np.full(len(class_names), -math.inf)
        for name, kind in ((CLASSES, "class"), (SHARDS, "client")):
            path = folder / name
            if rounds_done and path.exists():
                frame = read_table(path, ("round", kind, "accuracy"))
                frame = frame[frame["round"] <= rounds_done]
                write_whole(path, frame.to_csv(index=False).encode())
                if name == CLASSES:
                    self.best = _best(path, frame, len(class_names))
            else:
                path.unlink(missing_ok=True)

    def add(
        self, round: int, by_class: NDArray[np.float64], by_client: Mapping[int, float]
    ) -> dict[str, float | None]:
        """Write the accuracies of a round; return its columns."""
        classes = [
            {"round": round, "class": number, "name": name, "accuracy": by_class[number]}
            for number, name in enumerate(self.class_names)
        ]
        self._append(CLASSES, classes)
        self.best = np.fmax(self.best, by_class)
        self._append(
            SHARDS, [{"round": round, "client": k, "accuracy": v} for k, v in by_client.items()]
        )
        values = list(by_client.values())
        return {
            "balanced_accuracy": float(np.nanmean(by_class)),
            "performance_gap": performance_gap(by_class),
            "backward_transfer": backward_transfer(by_class, self.best),
            "client_accuracy": float(np.mean(values)) if values else None,
            "worst_client_accuracy": worst(values) if values else None,
            "client_accuracy_std": float(np.std(values)) if values else None,
            "jain": jain(values) if values else None,
        }

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        path = self.folder / name
        if rows:
            text = pd.DataFrame(rows).to_csv(header=not path.exists(), index=False)
            append(path, text.encode())


def _best(path: Path, frame: pd.DataFrame, classes: int) -> NDArray[np.float64]:
    """Return the best accuracy of each class so far."""
    best = frame.groupby("class")["accuracy"].max()
    if len(best) != classes:
        raise DamagedError(f"{path} has rows of {len(best)} classes, not of {classes}")
    return best.to_numpy(dtype=float)
