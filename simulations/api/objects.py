"""Objects where an experiment has spec strings: a codec, a model, images and labels."""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

import datasets
import numpy as np
from datasets.fingerprint import Hasher
from torch import nn

from fl_split.foreign import Given
from fl_split.models import Model
from fl_split.models.own import OwnModel
from fl_split.spec_errors import SpecError
from fl_split.specs import parse
from fl_split.tables import Table
from simulations.data.descriptions import Dataset
from simulations.data.memory import in_memory
from simulations.data.partitioners import Rows
from simulations.runs.origins import NAMED, code
from simulations.runs.parts import SPEC_TABLES

LONGEST_LABEL = 60


def with_specs(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Replace every object in `keys` by a spec string that stands for it, or carries it.

    Raises
    ------
    ValueError
        An object cannot be what its key needs; the message names the key.
    """
    return {key: as_spec(key, value) for key, value in keys.items()}


def as_spec(key: str, value: Any) -> Any:
    """Return a spec string for one object; whatever is no object of a part is returned as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PurePath):
        return str(value)  # which a spec is expected to stand around, as is said
    if key not in SPEC_TABLES or isinstance(value, str):
        return value
    try:
        part = TAKEN.get(key, _as_it_is)(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    return _spelt(part, SPEC_TABLES[key]) or Given.of(part, _label(part), _fingerprint(part))


def _model(given: Any) -> Any:
    """Take a model's description, a module, stages by name or in a list, or what makes them."""
    if isinstance(given, Mapping):
        given = nn.Sequential(OrderedDict(given))
    elif isinstance(given, list | tuple):
        given = nn.Sequential(*given)
    if isinstance(given, nn.Module):
        return OwnModel(given)
    if isinstance(given, Model) or not callable(given):
        return given
    return OwnModel(given)


def _dataset(given: Any) -> Any:
    is_theirs = isinstance(given, datasets.Dataset | datasets.DatasetDict)
    return given if isinstance(given, Dataset) and not is_theirs else in_memory(given)


def _partition(given: Any) -> Any:
    """Take a partitioner, or the rows of every client."""
    if isinstance(given, Sequence | np.ndarray):
        return Rows([np.asarray(rows) for rows in given])
    return given


def _as_it_is(given: Any) -> Any:
    return given


TAKEN: dict[str, Callable[[Any], Any]] = {
    "model": _model,
    "dataset": _dataset,
    "partition": _partition,
}
"""Keys whose objects may have other forms, and what brings these into ours."""


def _spelt(part: Any, table: Table[Any]) -> str:
    """Spell out a part by its class and fields; return nothing where that does not give it back.

    A part of ours is spelt ``adc(ratio=0.1)``, one of a module that can be imported
    ``my_parts:MyCodec(ratio=0.1)``.
    """
    kind = type(part)
    ours = next((name for name, one in table.items() if one is kind), "")
    is_importable = kind.__module__ != "__main__" and kind.__qualname__ == kind.__name__
    if not is_dataclass(part) or not (ours or is_importable):
        return ""
    values = {field.name: getattr(part, field.name) for field in fields(part) if field.init}
    name = ours or f"{kind.__module__}:{kind.__name__}"
    spec = f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})"
    with suppress(SpecError):
        return spec if parse(spec, table) == part else ""
    return ""


def _label(part: Any) -> str:
    """Return what a part calls itself, or its class where that is long or an address."""
    text = " ".join(repr(part).split())
    return type(part).__name__ if len(text) > LONGEST_LABEL or " at 0x" in text else text


def _fingerprint(part: Any) -> str:
    """Return a digest of a part, code and state: the same for the same part in any process."""
    own = getattr(part, "fingerprint", None)
    if callable(own):
        return str(own())
    digest = hashlib.blake2b(digest_size=8)
    for one in code(part):
        digest.update(_source(one).encode())
    digest.update(_state(part).encode())
    return digest.hexdigest()


def _source(one: Callable[..., Any]) -> str:
    """Return the source of a class or function, of a class of a notebook that of its methods."""
    name = f"{one.__module__}:{one.__qualname__}"
    if one.__module__.partition(".")[0] in NAMED:
        return name
    try:
        return name + inspect.getsource(one)
    except (OSError, TypeError):
        members = [one, *vars(one).values()]
        inside = [getattr(m, "fget", None) or getattr(m, "__func__", m) for m in members]
        return name + "".join(_text(found) for found in inside if inspect.isfunction(found))


def _text(function: Any) -> str:
    """Return a function's source; of one without, typed at a prompt or generated, its bytecode."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return str(Hasher.hash(function.__code__))


def _state(part: Any) -> str:
    """Return what a part holds beside its code, as text."""
    stages = part.stages if isinstance(part, OwnModel) else None
    if isinstance(stages, nn.Module):
        tensors = {name: value.numpy(force=True) for name, value in stages.state_dict().items()}
        return f"{stages}{Hasher.hash(tensors)}{Hasher.hash(_settings(part))}"
    if inspect.isfunction(stages):
        given = inspect.getclosurevars(stages).nonlocals, stages.__defaults__, stages.__kwdefaults__
        return f"{Hasher.hash(given)}{Hasher.hash(_settings(part))}"
    return str(Hasher.hash(part.__getstate__()))


def _settings(model: OwnModel) -> tuple[Any, ...]:
    return model.image_size, model.mean, model.std
