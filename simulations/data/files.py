"""Files of images and labels, in the forms that people have them, read into splits."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as parquet

from simulations.data import cache, folders, spreadsheets
from simulations.data.encoded import stamp
from simulations.data.images import DataError
from simulations.data.memory import rows_of
from simulations.data.splits import Decision, kind

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PICTURES = frozenset({"x", "image", "images", "data", "pixels"})
ANSWERS = frozenset({"y", "label", "labels", "target", "targets"})
"""Words in names of arrays of images, and of labels."""

LISTED = 5
"""Files that a message names."""


@dataclass(frozen=True)
class Found:
    """What was read: splits by name, what was decided, and columns if they are known."""

    splits: dict[str, datasets.Dataset]
    decisions: list[Decision] = field(default_factory=list)
    image: str = ""
    label: str = ""


def read(path: str, *, image: str = "", label: str = "") -> Found:
    """Read a file or a folder; `image` and `label` name columns of a spreadsheet.

    Raises
    ------
    DataError
        There is nothing at `path`, or nothing that can be read.
    """
    place = Path(path).expanduser()
    if not path or not place.exists():
        raise DataError(f"no file or folder {path!r}")
    if place.is_dir():
        return _folder(place, image, label)
    for suffixes, reader in FILES.items():
        if place.name.lower().endswith(suffixes):
            return reader(place, image, label)
    if _is_parquet(place):
        return _parquet([place], place)
    known = ", ".join(suffix for suffixes in FILES for suffix in suffixes)
    raise DataError(
        f"cannot load {path!r}: {place.suffix or 'this'} is none of {known}; a folder of images by "
        "class, or fl_split.run(dataset=(images, labels)), can be made of anything"
    )


def load(name: str, of: str, config: str | None = None, **files: Any) -> Found:
    """Load a data set by the library, with all its splits."""
    try:
        found = datasets.load_dataset(name, config, **files)
    except Exception as error:  # the library raises a different type for every format
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise DataError(f"cannot load {of!r}: {reason}") from None
    return Found({str(split): table for split, table in found.items()})


def _folder(place: Path, image: str, label: str) -> Found:
    names = {entry.name for entry in place.iterdir()}
    if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= names:
        return _saved(place)
    listing = folders.listing(place)
    if any(file.stem == "metadata" and file.suffix in METADATA for file in listing.others):
        return load(str(place), str(place))
    tables = [file for file in listing.others if file.suffix.lower() in spreadsheets.SUFFIXES]
    if found := [file for file in listing.others if file.suffix.lower() == ".parquet"]:
        return _parquet(found, place)
    if listing.by_class and (len(listing.classes) > 1 or not tables):
        splits, decisions = folders.by_class(listing, tables)
        return Found(splits, decisions)
    if tables:
        return _tables(tables, place, image, label)
    raise DataError(f"no images in {str(place)!r}; it holds {_listed(listing.others) or 'nothing'}")


METADATA = frozenset({".csv", ".jsonl", ".parquet"})
"""Of files ``metadata.*``, which the library reads beside images."""


def _saved(place: Path) -> Found:
    """Read what ``save_to_disk`` has written."""
    try:
        found = datasets.load_from_disk(str(place))
    except Exception as error:  # the library raises a different type for every fault
        raise DataError(f"cannot load {str(place)!r}: {error}") from None
    return Found({**found} if isinstance(found, datasets.DatasetDict) else {"train": found})


def _parquet(files: Sequence[Path], place: Path) -> Found:
    """Read Parquet files, each split with its own classes: they may be listed in another order."""
    found, by_split = {}, _by_split(files, place)
    for split, several in by_split.items():
        names = [_declared(file) for file in several]
        for file, other in zip(several, names, strict=True):
            if other != names[0]:
                raise DataError(
                    f"{file.name} and {several[0].name} list other classes, or in another order; "
                    "write them with the same features"
                )
        # The library looks at names and times only; a file may change without either.
        marks = hashlib.blake2b(b"".join(stamp(str(file)) for file in several), digest_size=8)
        data_files = {"data_files": {"train": [str(file) for file in several]}}
        name = f"files-{marks.hexdigest()}"
        found[split] = load("parquet", str(place), name, **data_files).splits["train"]
    return Found(found)


def _declared(file: Path) -> dict[str, list[str]]:
    """Return the names of classes that a file declares, by column; DataError if it is torn."""
    try:
        features = datasets.Features.from_arrow_schema(parquet.read_schema(file))
    except Exception as error:  # of Arrow, of the system, of the metadata
        raise DataError(f"cannot load {str(file)!r}: {error}") from None
    return {k: one.names for k, one in features.items() if isinstance(one, datasets.ClassLabel)}


def _by_split(files: Sequence[Path], place: Path) -> dict[str, list[Path]]:
    """Group files by what their names say; all are to train on if none says anything."""
    kinds = {file: _kind(file, place) for file in sorted(files, key=str)}
    if not any(kinds.values()):
        return {"train": [*kinds]}
    found: dict[str, list[Path]] = {}
    for file, what in kinds.items():
        found.setdefault(what or file.stem, []).append(file)
    return found


def _kind(file: Path, place: Path) -> str:
    parts = file.relative_to(place).with_suffix("").parts if file != place else ()
    return next((what for part in reversed(parts) if (what := kind(part))), "")


def _is_parquet(place: Path) -> bool:
    with open(place, "rb") as file:
        return file.read(4) == b"PAR1"


def _parquet_file(place: Path, image: str, label: str) -> Found:
    del image, label
    return _parquet([place], place)


def _arrow_file(place: Path, image: str, label: str) -> Found:
    del image, label
    try:
        return Found({"train": datasets.Dataset.from_file(str(place))})
    except Exception as error:  # of Arrow, of the system
        raise DataError(f"cannot load {str(place)!r}: {error}") from None


def _arrays(place: Path, image: str, label: str) -> Found:
    """Read arrays of images and of labels, as x_train and y_train, or test_images, test_labels."""
    del image, label
    found: dict[str, dict[str, Any]] = {}
    try:
        with np.load(place, allow_pickle=False) as arrays:
            for name in arrays.files:
                words = set(name.lower().replace("_", " ").split())
                role = "images" if words & PICTURES else "labels" if words & ANSWERS else ""
                if role:
                    found.setdefault(kind(name) or "train", {})[role] = arrays[name]
            names = ", ".join(arrays.files)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot load {str(place)!r}: {error}") from None
    whole = {split: halves for split, halves in found.items() if len(halves) == 2}
    if "train" not in whole:
        raise DataError(
            f"{str(place)!r} has the arrays {names}; it needs two called images and labels, or "
            "x_train and y_train, and perhaps x_test and y_test"
        )
    return Found(
        {
            split: rows_of(
                halves["images"],
                np.asarray(halves["labels"]).reshape(len(halves["labels"]), -1).squeeze(1),
            )
            for split, halves in whole.items()
        }
    )


def _archive(place: Path, image: str, label: str) -> Found:
    """Unpack an archive into the cache, once, and read the folder."""
    marks = hashlib.blake2b(stamp(str(place.absolute())), digest_size=12).hexdigest()
    folder = cache.folder() / "archives" / marks
    if not folder.exists():
        part = folder.with_suffix(f".{os.getpid()}{cache.PART}")
        try:
            part.mkdir(parents=True)
            safe = {} if place.suffix.lower() == ".zip" else {"filter": "data"}
            shutil.unpack_archive(place, part, **safe)  # type: ignore[arg-type]
            part.replace(folder)
        except (OSError, shutil.ReadError, ValueError) as error:
            if not folder.exists():  # another process may have been first
                raise DataError(
                    f"cannot unpack {str(place)!r}: {error}; unpack it yourself"
                ) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return _folder(folder, image, label)


def _table_file(place: Path, image: str, label: str) -> Found:
    return _tables([place], place.parent, image, label)


def _tables(files: Sequence[Path], place: Path, image: str, label: str) -> Found:
    """Read spreadsheets: of file names and labels beside images, or of pixels."""
    by_split = _by_split(files, place)
    several = [name for name, some in by_split.items() if len(some) > 1]
    if several or (len(by_split) > 1 and "train" not in by_split):
        raise DataError(
            f"{str(place)!r} holds the tables {_listed(files)}; "
            f"name one: local(path='.../{files[0].name}')"
        )
    found: dict[str, datasets.Dataset] = {}
    decisions: list[Decision] = []
    columns = "", ""
    for split, (file,) in by_split.items():
        table = spreadsheets.read(file, image, label)
        decisions += table.decisions
        columns = table.image, table.label
        found |= table.splits if len(by_split) == 1 else {split: table.splits["train"]}
    return Found(found, decisions, *columns)


def _listed(files: Sequence[Path]) -> str:
    rest = len(files) - LISTED
    names = ", ".join(file.name for file in files[:LISTED])
    return names + (f" and {rest:,} more files" if rest > 0 else "")


Reader = Callable[[Path, str, str], Found]

FILES: Mapping[tuple[str, ...], Reader] = {
    (".parquet",): _parquet_file,
    (".arrow",): _arrow_file,
    (".npz",): _arrays,
    ARCHIVES: _archive,
    spreadsheets.SUFFIXES: _table_file,
}
"""What reads a file, by how its name ends."""
