"""Files of images and labels, in the forms that people have them, read into splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow.parquet as parquet

from simulations.data import archives, arrays, folders, repeats, spreadsheets
from simulations.data.encoded import stamp
from simulations.data.grouping import by_split, on_splits
from simulations.data.images import DataError
from simulations.data.splits import Decision
from simulations.data.walking import Pictures, below, is_foreign, is_picture, listed, on_foreign


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
    try:
        return _read(place, image, label)
    except OSError as error:
        shown = error.filename or path
        raise DataError(f"cannot read {str(shown)!r}: {error.strerror or error}") from None


def _read(place: Path, image: str, label: str) -> Found:
    if place.is_dir():
        return _folder(place, image, label)
    for suffixes, reader in FILES.items():
        if place.name.lower().endswith(suffixes):
            return reader(place, image, label)
    if _is_parquet(place):
        return _parquet([place], place)
    known = ", ".join(suffix for suffixes in FILES for suffix in suffixes)
    raise DataError(
        f"cannot load {str(place)!r}: {place.suffix or 'this'} is none of {known}; a folder of "
        "images by class, or fl_split.run(dataset=(images, labels)), can be made of anything"
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
    with _or_converted(listing.foreign):
        found = _listed(listing, image, label)
    return replace(found, decisions=[*found.decisions, *_unread_images(listing.foreign)])


def _listed(listing: folders.Listing, image: str, label: str) -> Found:
    """Read what a folder holds; of several kinds the likeliest."""
    place, metadata = listing.place, [file for file in listing.others if _is_metadata(file)]
    if metadata and not any(spreadsheets.are_texts(file, label) for file in metadata):
        return _metadata(metadata, listing, label)
    tables = _ending(listing, spreadsheets.SUFFIXES)
    rows = _ending(listing, (".parquet",)) or _ending(listing, (".arrow",))
    files = Pictures(place, listing.pictures if tables else [])
    named = {file: spreadsheets.images_named(file, files, image, label) for file in tables}
    names_most = 2 * len(set().union(*named.values())) > len(listing.pictures)
    are_classes = not listing.fault and len(listing.classes) > 1
    if names_most and (used := [file for file in tables if named[file]]):
        with _or_folders(used, are_classes):
            found = _tables(used, files, image, label)
        if are_classes:
            text = f"those of {listed(used)}; folders would do too: {listed(listing.classes)}"
            found.decisions.append(Decision("classes", text, "moving the table away", True))
        return _with_unread(found, used, listing)
    if listing.by_class and (are_classes or not (tables or rows)):
        return Found(*folders.by_class(listing, [*tables, *rows]))
    if rows:
        return _with_unread(_rows(rows, place), rows, listing)
    if tables:
        return _with_unread(_tables(tables, files, image, label), tables, listing)
    others = [
        file for file in listing.others if file.name.lower().endswith((".npz", *archives.SUFFIXES))
    ]
    if len(others) == 1 and not listing.pictures:
        found = _read(others[0], image, label)
        return _with_unread(found, others, listing)
    nothing = "nothing else" if listing.foreign else "nothing"
    held = listed(listing.others or listing.loose) or nothing
    what = "folders of classes" if listing.pictures else "images"
    raise DataError(f"no {what} in {str(place)!r}; it holds {held}")


def _ending(listing: folders.Listing, suffixes: tuple[str, ...]) -> list[Path]:
    return [file for file in listing.others if file.suffix.lower() in suffixes]


def _unread_images(foreign: Sequence[Path]) -> list[Decision]:
    """Say which images Pillow does not read."""
    text = on_foreign(foreign)
    return [Decision("images", text, "plugins", is_warning=True)] if text else []


@contextmanager
def _or_converted(foreign: Sequence[Path]) -> Iterator[None]:
    """Add to what is wrong that there are images that Pillow does not read."""
    try:
        yield
    except DataError as error:
        raise DataError("; ".join(filter(None, [str(error), on_foreign(foreign)]))) from None


@contextmanager
def _or_folders(tables: Sequence[Path], are_classes: bool) -> Iterator[None]:
    """Add to what is wrong with tables that the folders beside them may be classes."""
    try:
        yield
    except DataError as error:
        more = f"; or move {listed(tables)} away, and the folders are the classes"
        raise DataError(f"{error}{more if are_classes else ''}") from None


def _with_unread(found: Found, used: Sequence[Path], listing: folders.Listing) -> Found:
    """Say which files are not read, and images if no table names them; warn if they could be."""
    there = [*listing.others, *([] if found.image else listing.pictures)]
    rest = sorted({*there} - {*used}, key=str)
    could = any(file.name.lower().endswith((*chain(*FILES),)) for file in rest)
    text = f"{len(rest):,} files are not read: {listed(rest)}"
    said = [Decision("files", text, "dataset=local(path='...')", could)] if rest else []
    return replace(found, decisions=[*found.decisions, *said])


METADATA = frozenset({".csv", ".jsonl", ".parquet"})
"""Of files ``metadata.*``, which the library reads beside images."""


def _is_metadata(file: Path) -> bool:
    """Tell files that the library reads beside images; its CSV names them in one column."""
    if file.stem != "metadata" or file.suffix not in METADATA:
        return False
    return file.suffix != ".csv" or b"file_name" in file.open("rb").readline()


def _metadata(files: Sequence[Path], listing: folders.Listing, label: str) -> Found:
    """Read images that the library's own tables name; say how many they do not."""
    data = {"data_dir": str(listing.place)}
    found = load("imagefolder", str(listing.place), f"files-{_marks(files)}", **data)
    splits, named, said = repeats.without(found.splits, label, listed(files))
    pictures = Pictures(listing.place, [file.resolve() for file in listing.pictures])
    said += repeats.left(named, pictures, files)
    return _with_unread(Found(splits, said), [*files, *listing.pictures], listing)


def _marks(files: Sequence[Path]) -> str:
    """Return what changes with files: the library looks at names and times only."""
    stamps = b"".join(stamp(str(file)) for file in files)
    return hashlib.blake2b(stamps, digest_size=8).hexdigest()


def _saved(place: Path) -> Found:
    """Read what ``save_to_disk`` has written."""
    try:
        found = datasets.load_from_disk(str(place))
    except Exception as error:  # the library raises a different type for every fault
        raise DataError(f"cannot load {str(place)!r}: {error}") from None
    return Found({**found} if isinstance(found, datasets.DatasetDict) else {"train": found})


def _rows(files: Sequence[Path], place: Path) -> Found:
    """Read files that hold images: Parquet or Arrow."""
    if files[0].suffix.lower() != ".arrow":
        return _parquet(files, place)
    found = {}
    for split, several in by_split(files, place).items():
        try:
            parts = [datasets.Dataset.from_file(str(file)) for file in several]
            found[split] = datasets.concatenate_datasets(parts)
        except Exception as error:  # of Arrow, of the system
            shown = str(several[0] if len(several) == 1 else place)
            raise DataError(f"cannot load {shown!r}: {error}") from None
    return Found(found, on_splits(files, place))


def _parquet(files: Sequence[Path], place: Path) -> Found:
    """Read Parquet files, each split with its own classes: they may be listed in another order."""
    found = {}
    for split, several in by_split(files, place).items():
        names = [_declared(file) for file in several]
        for file, other in zip(several, names, strict=True):
            if other != names[0]:
                raise DataError(
                    f"{file.name} and {several[0].name} list other classes, or in another order; "
                    "write them with the same features"
                )
        data_files = {"data_files": {"train": [str(file) for file in several]}}
        name = f"files-{_marks(several)}"
        found[split] = load("parquet", str(place), name, **data_files).splits["train"]
    return Found(found, on_splits(files, place))


def _declared(file: Path) -> dict[str, list[str]]:
    """Return the names of classes that a file declares, by column; DataError if it is torn."""
    try:
        features = datasets.Features.from_arrow_schema(parquet.read_schema(file))
    except Exception as error:  # of Arrow, of the system, of the metadata
        raise DataError(f"cannot load {str(file)!r}: {error}") from None
    return {k: one.names for k, one in features.items() if isinstance(one, datasets.ClassLabel)}


def _is_parquet(place: Path) -> bool:
    with open(place, "rb") as file:
        return file.read(4) == b"PAR1"


def _rows_file(place: Path, image: str, label: str) -> Found:
    del image, label
    return _rows([place], place)


def _arrays_file(place: Path, image: str, label: str) -> Found:
    return Found(*arrays.read(place, image, label), "image", "label")


def _archive(place: Path, image: str, label: str) -> Found:
    return _folder(archives.unpacked(place), image, label)


def _table_file(place: Path, image: str, label: str) -> Found:
    root = place.parent
    there = sorted(below(root), key=str)
    with _or_converted([file for file in there if is_foreign(file)]):
        return _tables([place], Pictures(root, [*filter(is_picture, there)]), image, label)


def _tables(tables: Sequence[Path], files: Pictures, image: str, label: str) -> Found:
    """Read spreadsheets: of file names and labels beside images, or of pixels."""
    groups = by_split(tables, files.root)
    several = [name for name, some in groups.items() if len(some) > 1]
    if several or (len(groups) > 1 and "train" not in groups):
        raise DataError(
            f"{str(files.root)!r} holds the tables {listed(tables)}; "
            f"name one: local(path='.../{tables[0].name}')"
        )
    found: dict[str, datasets.Dataset] = {}
    decisions = on_splits(tables, files.root)
    columns, named = ("", ""), []
    for split, (file,) in groups.items():
        table = spreadsheets.read(file, files, image, label)
        decisions += table.decisions
        columns = table.image, table.label
        named.append(table.named)
        if len(groups) > 1 and {*table.splits} != {"train"}:
            raise DataError(f"{file.name} is a split by its name and has a column of splits too")
        found |= table.splits if len(groups) == 1 else {split: table.splits["train"]}
    if any(map(len, named)):
        decisions += repeats.left(pd.concat([one for one in named if len(one)]), files, tables)
    return Found(found, decisions, *columns)


Reader = Callable[[Path, str, str], Found]

FILES: Mapping[tuple[str, ...], Reader] = {
    (".parquet",): _rows_file,
    (".arrow",): _rows_file,
    (".npz",): _arrays_file,
    archives.SUFFIXES: _archive,
    spreadsheets.SUFFIXES: _table_file,
}
"""What reads a file, by how its name ends."""
