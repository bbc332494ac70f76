"""Parts that are not ours: of a user's module, of an installed package, or objects in memory.

A part is named in four ways. ``my_pkg.codecs:MyCodec`` is importable from the folder one is in,
or installed. ``my_parts:MyCodec`` may also be of a file, ``plugins = "my_parts.py"``. A plain
name may be an entry point of an installed package. A :class:`Given` is an object.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points, packages_distributions, version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from fl_split.spec_errors import SpecError, unknown

GIVEN = "object"
"""What the spec of an object in memory begins with: ``object('MyCodec(ratio=0.1)', 'a1b2')``."""


DIGEST = "__fl_split_sha256__"
"""Attribute of a user's module: the digest of the source that it was made of."""

OURS = {"fl_split", "strategies", "simulations"}
"""Packages that every process has."""


class Given(str):
    """A spec string that carries the part it stands for.

    Attributes
    ----------
    part : object
        What every parser returns instead of building something.
    """

    part: Any

    def __new__(cls, text: str, part: Any) -> Given:
        """Give `part` a spec string."""
        given = super().__new__(cls, text)
        given.part = part
        return given

    @classmethod
    def of(cls, part: Any, label: str, fingerprint: str) -> Given:
        """Name a part: what people read, and what tells it from others."""
        return cls(f"{GIVEN}({label!r}, {fingerprint!r})", part)

    def __reduce__(self) -> tuple[Any, ...]:
        # A class of a notebook or a script travels with its code.
        return _unpickled, (str(self), cloudpickle.dumps(self.part))


def _unpickled(text: str, part: bytes) -> Given:
    return Given(text, cloudpickle.loads(part))


@dataclass(frozen=True)
class Origin:
    """Where the code of a part came from.

    Attributes
    ----------
    part : str
        ``module:name``.
    version : str
        Of the installed package, "my-package 1.2"; empty for a file.
    sha256 : str
        Of the source file; empty where there is none, and for the script that runs.
    """

    part: str
    version: str
    sha256: str


def plug_in(files: Sequence[str]) -> None:
    """Import each file under its own name, ``my_parts.py`` as ``my_parts``.

    A file that has changed since is imported again.

    Raises
    ------
    SpecError
        There is no such file, it cannot be imported, or its name is taken.
    """
    for text in files:
        path = Path(text).expanduser().absolute()
        if not path.is_file():
            raise SpecError(f"plugins: no file {text!r}; give the path of a Python file")
        _import_file(path, hashlib.sha256(path.read_bytes()).hexdigest())


def _import_file(path: Path, digest: str) -> None:
    name, known = path.stem, sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) != str(path):
        raise SpecError(
            f"plugins: {str(path)!r}: another module is called {name!r} already; rename the file"
        )
    if getattr(known, DIGEST, "") == digest:
        return
    spec = spec_from_file_location(name, path)
    if not name.isidentifier() or spec is None or spec.loader is None:
        raise SpecError(f"plugins: {str(path)!r} is no Python module; give a file NAME.py")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises
        del sys.modules[name]
        raise SpecError(f"plugins: importing {str(path)!r} fails: {_named(error)}") from None
    setattr(module, DIGEST, digest)


def load(reference: str) -> Callable[..., Any]:
    """Return the class or function ``module:name``; the folder one is in is searched too.

    Raises
    ------
    SpecError
        The module cannot be imported, or has no such name.
    """
    name, _, attribute = reference.partition(":")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: nothing of ours can be hidden by it
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SpecError(
            f"{reference!r}: {error}; looked in the folder {str(Path.cwd())!r} and in what is "
            "installed; a file elsewhere is named by plugins"
        ) from None
    except Exception as error:  # whatever a user's module raises
        raise SpecError(f"{reference!r}: importing {name} fails: {_named(error)}") from None
    found = getattr(module, attribute, None)
    if not callable(found):
        members = vars(module).items()
        own = [k for k, one in members if isinstance(one, type) and one.__module__ == name]
        raise SpecError(f"{reference!r}: {unknown('class', attribute, own)}")
    return found


def offered(group: str) -> dict[str, str]:
    """Return what installed packages offer under an entry point: name to ``module:name``."""
    return {point.name: point.value for point in entry_points(group=group)}


def origin(part: Callable[..., Any]) -> Origin:
    """Tell where the code of a class or function came from."""
    module = sys.modules[part.__module__]
    file = getattr(module, "__file__", None)
    top = part.__module__.partition(".")[0]
    if top != "__main__" and not hasattr(module, DIGEST) and file and Path(file).is_file():
        # Kept: the file may be edited while what it was runs on.
        setattr(module, DIGEST, hashlib.sha256(Path(file).read_bytes()).hexdigest())
    packages = packages_distributions().get(top, []) if _is_installed(module) else []
    return Origin(
        f"{part.__module__}:{getattr(part, '__qualname__', part)}",
        ", ".join(f"{name} {version(name)}" for name in packages),
        getattr(module, DIGEST, ""),
    )


def told(one: Origin) -> str:
    """Say where a part comes from: its package and version, or its module."""
    return one.version or f"module {one.part.partition(':')[0]}"


def travelling(modules: Sequence[str]) -> list[ModuleType]:
    """Return those of `modules` whose code must travel to other processes.

    What is installed is found there as well; classes of ``__main__`` travel anyhow.
    """
    found = {name.partition(".")[0]: sys.modules[name] for name in modules if name in sys.modules}
    return [
        sys.modules.get(top, module)
        for top, module in found.items()
        if top not in {*OURS, "__main__"} and not _is_installed(module)
    ]


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None) or ""
    return not file or bool({"site-packages", "dist-packages"} & {*Path(file).parts})


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
