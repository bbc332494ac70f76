"""What an inference gave: tables for people and programs, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulations.inference.control import Controlled
from simulations.inference.figure import draw
from simulations.inference.pictures import Files
from simulations.report import kept_patches
from simulations.report.figures import our_style
from simulations.runs.files import make_folder, write_whole, writing


@dataclass(frozen=True)
class Inference:
    """What a run gave and cost when it served its test images.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per policy and control: accuracy; means over images of bytes, operations, seconds
        and joules; `mixture`, the accuracy of a random mixture of all local and all
        sent at equal bytes; of a controller, that of its `random mixture` of constants;
        `file_accuracy`, that of images as files of no more bytes, with `file_too_large`.
    frontiers : dict
        By policy, one row for each threshold of its sweep; of controllers, one for each setting.
    images : dict
        By policy, one row per image.
    clients : pandas.DataFrame
        By policy and client, of held-out rows: label entropy, share that leaves, accuracy.
    histograms : dict
        By policy, how many images left where, or were sent in which setting.
    patches : pandas.DataFrame, optional
        Pixels of some test images and which go on, where the run selects tokens.
    """

    table: pd.DataFrame
    frontiers: dict[str, pd.DataFrame]
    images: dict[str, pd.DataFrame] = field(repr=False)
    clients: pd.DataFrame = field(repr=False)
    histograms: dict[str, dict[str, int]]
    notes: list[str]
    patches: pd.DataFrame | None = field(default=None, repr=False)

    def with_controlled(self, found: Controlled | None) -> Inference:
        """Add what controllers have made, and settings as a line."""
        if found is None:
            return self
        return replace(
            self.with_rows(found.rows, found.notes),
            frontiers={**self.frontiers, "settings": found.settings},
            images={**self.images, **found.images},
            histograms={**self.histograms, **found.histograms},
        )

    def with_rows(self, rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> Inference:
        """Add rows of the table, and notes."""
        table = pd.concat([self.table, pd.DataFrame(rows)], ignore_index=True)
        return replace(self, table=table, notes=[*self.notes, *notes])

    def with_files(self, files: Files) -> Inference:
        """Add rows of files, and beside each other row what files of as few bytes give."""
        budgets = self.table["bytes_up"].tolist()
        fitting = [files.within(budget) if budget else (np.nan, 0) for budget in budgets]
        accuracy, too_large = (list(one) for one in zip(*fitting, strict=True))
        more = {"file_accuracy": accuracy, "file_too_large": too_large}
        found = replace(self, table=self.table.assign(**more))
        note = (
            f"file %: up to {max(too_large)} images have no file so small (file_too_large): wrong"
        )
        return found.with_rows(files.rows, [note] if any(too_large) else [])

    def priced(self, delay_price: float | None, image_shape: Sequence[int]) -> Inference:
        """Add columns: accuracy less priced seconds, uses of the channel per number."""
        price = np.nan if delay_price is None else delay_price

        def more(frame: pd.DataFrame) -> pd.DataFrame:
            uses = frame["channel_uses"] / np.prod(image_shape)
            return frame.assign(
                uses_per_number=uses, **{"return": frame["accuracy"] - price * frame["seconds"]}
            )

        frontiers = {name: more(frame) for name, frame in self.frontiers.items()}
        return replace(self, table=more(self.table), frontiers=frontiers)

    @property
    def places(self) -> pd.DataFrame:
        """One row per policy and place: images that left there, and their share."""
        whole = {name: sum(counts.values()) for name, counts in self.histograms.items()}
        rows = [
            {"policy": name, "place": place, "images": count, "share": count / whole[name]}
            for name, counts in self.histograms.items()
            for place, count in counts.items()
        ]
        return pd.DataFrame(rows)

    def lines(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Return titles and cells of a table for people, and columns that it can do without."""
        known = {key: title for key, title in TITLES.items() if self.table[key].notna().any()}
        rows = [
            [row["policy"], *(_cell(key, row[key]) for key in known)]
            for row in self.table.to_dict("records")
            if not str(row["policy"]).startswith(("JPEG", "WEBP")) or row["policy"] in SHOWN_FILES
        ]
        return ["policy", *known.values()], rows, ["server's", "calibr.", "area %", "J"]


TITLES = {
    "accuracy": "right %",
    "mixture": "mix. %",
    "file_accuracy": "file %",
    "sent": "sent %",
    "return": "return %",
    "bytes_up": "bytes",
    "uses_per_number": "k/n",
    "device_flops": "MFLOP",
    "server_flops": "server's",
    "seconds": "s",
    "joules": "J",
    "calibration_error": "calibr.",
    "area": "area %",
}


SHOWN_FILES = ("JPEG 50", "WEBP 50")
"""Of the files that images are sent as, those that a terminal shows."""


def _cell(key: str, value: Any) -> str:
    if pd.isna(value):
        return "-"
    if TITLES[key].endswith("%"):
        return f"{100 * value:.1f}"
    return f"{1e-6 * value:.2f}" if "flops" in key else f"{value:,.3g}"


def check_new(folder: Path) -> None:
    """Raise ValueError if there are results of an inference in `folder` already."""
    if (folder / "infer.csv").exists():
        raise ValueError(
            f"{str(folder)!r} holds an inference already; give another folder with --out, or "
            "remove it"
        )


def write(found: Inference, folder: Path) -> list[Path]:
    """Write tables and figures into `folder`; return the files."""
    check_new(folder)
    make_folder(folder)
    sweeps = [frame.assign(sweep=name) for name, frame in found.frontiers.items()]
    tables = {
        "infer.csv": found.table,
        "frontier.csv": pd.concat(sweeps, ignore_index=True),
        "places.csv": found.places,
    }
    if len(found.clients):
        tables["infer_clients.csv"] = found.clients
    for name, frame in tables.items():
        write_whole(folder / name, frame.to_csv(index=False).encode())
    images = pd.concat([frame.assign(policy=name) for name, frame in found.images.items()])
    write_whole(folder / "images.parquet", images.to_parquet(index=False))
    with writing(folder / "infer.svg"):
        draw(found.table, found.frontiers, found.histograms).savefig(folder / "infer.svg")
    names = [*tables, "images.parquet", "infer.svg"]
    if found.patches is not None:
        names += [kept_patches.FILE, "kept_patches.svg"]
        write_whole(folder / kept_patches.FILE, found.patches.to_parquet(index=False))
        with writing(folder / names[-1]), our_style("kept"):
            kept_patches.picture(found.patches).savefig(folder / names[-1])
    return [folder / name for name in names]
