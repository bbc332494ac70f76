"""A cache of decoded images on disk, and of what is known of encoded ones.

An entry is a folder named after a digest: of the contents of all images and of the transforms.
``known`` notes the survey of a data set under the signature of its files (paths, sizes, times,
inodes), so that a start reads no image. Processes that want the same entry wait for the one that
fills it; what a killed one has left is removed by the next.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import PIL
import platformdirs
from filelock import FileLock

from simulations.data.encoded import CHUNK, CHUNK_BYTES, EncodedImages, in_threads
from simulations.data.images import Decoded, Images, OnDisk, OnTheFly, decoded
from simulations.data.pictures import RULES, Transform
from simulations.data.raw import pixels_of
from simulations.data.survey import Survey, survey

VARIABLE = "FL_SPLIT_CACHE"
"""Environment variable that names the folder."""

PIXELS, NOTES, PART = "pixels.bin", "entry.json", ".part"

IMAGES, KNOWN, ARCHIVES = "images", "known", "archives"
"""Folders of the cache: decoded images, surveys, what archives held."""

VERSION = f"{RULES}-{PIL.__version__}"
"""Of what decodes images: part of every key."""

IN_MEMORY = 64 * 2**20
"""Bytes of decoded images up to which they are kept in memory."""

GB = 1e9

Progress = Callable[[str, int, int], None]
"""Called with what is being done, images done and images in all."""


class NoRoom(OSError):
    """The cache cannot take an entry: no folder, no permission, no space."""


@dataclass(frozen=True)
class Entry:
    """Decoded images in the cache.

    Attributes
    ----------
    name : str
        Of the data set they are of.
    made : float
        When, in seconds since 1970.
    """

    folder: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    transform: str
    made: float

    @property
    def bytes(self) -> int:
        """Size of the pixels."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def images(self) -> OnDisk:
        """Return what reads them."""
        return OnDisk(self.folder / PIXELS, self.shape, np.dtype(self.dtype))


def folder() -> Path:
    """Return where the cache is; it need not exist."""
    given = os.environ.get(VARIABLE)
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("fl-split"))


def surveyed(
    images: EncodedImages, decodes: bool, progress: Progress, note: Callable[[str], None]
) -> Survey:
    """Return the survey of `images`, from the cache if their files are what they were then."""
    if not images.is_on_disk:
        return survey(images, decodes)
    marks = f"{images.signature()}-{VERSION}{'-decoded' if decodes else ''}"
    known = folder() / KNOWN / f"{marks}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return Survey.of_record(json.loads(known.read_text()))
    found = survey(images, decodes, partial(progress, "look at images"))
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        part = known.with_suffix(f".{os.getpid()}{PART}")
        part.write_text(json.dumps(found.record()))
        part.replace(known)
    except OSError as error:
        note(f"what the images are cannot be noted in {known.parent}: {error.strerror or error}")
    return found


def decode(
    images: EncodedImages,
    name: str,
    digest: str,
    transform: Transform,
    limit: float,
    progress: Progress,
    note: Callable[[str], None],
) -> Images:
    """Return decoded images: few in memory, many in the cache, and where it cannot be on the fly.

    Parameters
    ----------
    images : EncodedImages
        What is decoded.
    name, digest : str
        What the data set is called; of the contents of all images.
    transform : Transform
        How images become arrays.
    limit : float
        Bytes that the whole cache may have.
    progress, note : Callable
        Told of work that takes long, and of what is done otherwise than asked for.

    Raises
    ------
    DataError
        An image cannot be decoded.
    """
    side = transform.size
    shape = len(images), transform.channels, side, side
    size = int(np.prod(shape)) * transform.dtype.itemsize
    if size <= IN_MEMORY:
        return np.concatenate(
            [np.empty((0, *shape[1:]), transform.dtype), *_chunks(images, transform)]
        )
    try:
        return _entry(images, name, digest, transform, size, limit, progress).images()
    except NoRoom as error:
        note(f"decoded on the fly, since {error}")
        return OnTheFly(images, transform)


def _entry(
    images: EncodedImages,
    name: str,
    digest: str,
    transform: Transform,
    size: int,
    limit: float,
    progress: Progress,
) -> Entry:
    """Return an entry of the cache; fill it if it is not there."""
    marks = f"{digest} {transform} {VERSION}".encode()
    place = folder() / IMAGES / blake2b(marks, digest_size=12).hexdigest()
    with suppress(OSError, ValueError, KeyError, TypeError):
        return _read(place)
    if limit <= 0:
        raise NoRoom("cache_gb is 0")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):  # which ends with a process that is killed
            with suppress(OSError, ValueError, KeyError, TypeError):
                return _read(place)  # another process has filled it meanwhile
            _check_room(place, size, limit)
            _fill(place, images, name, transform, progress)
        return _read(place)
    except OSError as error:
        if isinstance(error, NoRoom):
            raise
        raise NoRoom(
            f"the cache in {folder()} cannot be written: {error.strerror or error}"
        ) from None


def _check_room(place: Path, size: int, limit: float) -> None:
    """Raise NoRoom if the cache would grow beyond its limit, or the disk has no space."""
    held = size_of(IMAGES) + size_of(ARCHIVES)
    if held + size > limit:
        raise NoRoom(
            f"{_gb(size)} more than the {_gb(held)} in the cache are over its limit cache_gb="
            f"{limit / GB:g}; fl-split cache --clear makes room"
        )
    free = shutil.disk_usage(place.parent).free
    if size > free:
        raise NoRoom(f"{_gb(size)} are needed in {place.parent}, {_gb(free)} are free")


def _fill(
    place: Path, images: EncodedImages, name: str, transform: Transform, progress: Progress
) -> None:
    """Decode all images into a folder that gets its name when it is whole."""
    part = place.with_suffix(PART)
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    try:
        part.mkdir()
        done = 0
        with open(part / PIXELS, "wb") as file:
            for chunk in _chunks(images, transform):
                chunk.tofile(file)
                done += len(chunk)
                progress("decode images", done, len(images))
        shape = len(images), transform.channels, transform.size, transform.size
        facts = {"name": name, "shape": shape, "dtype": transform.dtype.name}
        (part / NOTES).write_text(json.dumps({**facts, "transform": repr(transform)}))
        part.replace(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _chunks(images: EncodedImages, transform: Transform) -> Iterator[Decoded]:
    """Decode images, some at a time, on two threads: decoding needs no lock of Python."""
    size = transform.channels * transform.size**2 * transform.dtype.itemsize
    with ThreadPoolExecutor(max_workers=2) as pool:
        for start, contents in images.chunks(max(1, min(CHUNK, CHUNK_BYTES // size))):
            ready = transform.of_arrays(pixels_of(contents))
            if ready is not None:
                yield ready
                continue
            numbered = [*enumerate(contents, start)]
            arrays = in_threads(
                pool, lambda one: decoded(one[1], transform, images, one[0]), numbered
            )
            yield np.stack([*arrays])


def _read(place: Path) -> Entry:
    """Read what an entry is."""
    found = json.loads((place / NOTES).read_text())
    entry = Entry(
        place,
        found["name"],
        tuple(found["shape"]),
        found["dtype"],
        found["transform"],
        (place / NOTES).stat().st_mtime,
    )
    if (place / PIXELS).stat().st_size != entry.bytes:
        raise ValueError("torn")
    return entry


def entries() -> list[Entry]:
    """Return what is in the cache, what was made last first."""
    found = []
    for notes in folder().glob(f"{IMAGES}/*/{NOTES}"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found.append(_read(notes.parent))
    return sorted(found, key=lambda entry: -entry.made)


def size_of(part: str) -> int:
    """Return how many bytes the files in a folder of the cache have."""
    found = 0
    for place, _, files in os.walk(folder() / part):
        for name in files:
            with suppress(OSError):  # which another process has removed meanwhile
                found += os.lstat(os.path.join(place, name)).st_size
    return found


def clear() -> int:
    """Empty the cache; return how many bytes that frees."""
    before = sum(map(size_of, (IMAGES, KNOWN, ARCHIVES)))
    for part in (IMAGES, KNOWN, ARCHIVES):
        shutil.rmtree(folder() / part, ignore_errors=True)
    return before - sum(map(size_of, (IMAGES, KNOWN, ARCHIVES)))


def _gb(size: float) -> str:
    return f"{size / GB:.3g} GB"
