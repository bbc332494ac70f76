"""Archives of files, unpacked into the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from simulations.data import cache
from simulations.data.encoded import stamp
from simulations.data.images import DataError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def unpacked(place: Path) -> Path:
    """Unpack an archive into the cache, once; return the folder.

    Raises
    ------
    DataError
        It is damaged, or has members that lie outside.
    """
    marks = hashlib.blake2b(stamp(str(place.absolute())), digest_size=12).hexdigest()
    folder = cache.folder() / "archives" / marks
    if not folder.exists():
        part = folder.with_suffix(f".{os.getpid()}{cache.PART}")
        try:
            part.mkdir(parents=True)
            safe = {} if place.suffix.lower() == ".zip" else {"filter": "data"}
            shutil.unpack_archive(place, part, **safe)  # type: ignore[arg-type]
            part.replace(folder)
        except Exception as error:  # of each packer, of the system
            if not folder.exists():  # another process may have been first
                reason = str(error).strip().partition("\n")[0] or repr(error)
                raise DataError(
                    f"cannot unpack {str(place)!r}: {reason}; unpack it yourself"
                ) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder
