"""Files of a checkpoint, in a local folder or on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

SHOWN = 5
"""Most files of a folder that an error names."""


def find(path: str, name: str) -> Path | None:
    """Return where the file `name` of a checkpoint is; None if it has none, or none is cached.

    Raises
    ------
    OSError
        `path` is no folder, and the hub has no such model or cannot be reached.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if path.startswith((".", "/", "~")):
        raise OSError("no such folder")
    return _of_hub(path, name, _raise_exceptions_for_missing_entries=False)


def _of_hub(path: str, name: str, **settings: Any) -> Path | None:
    from transformers.utils import cached_file

    try:
        found = cached_file(path, name, **settings)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"no such folder here, and {reason}") from None
    return Path(found) if found else None


def explain(path: str, name: str) -> str:
    """Say why a checkpoint has no file `name`, and which files it has.

    Raises
    ------
    OSError
        It is on the hub, which may have the file but cannot be asked.
    """
    if not Path(path).expanduser().is_dir():
        _of_hub(path, name)
    return f"no {name}{listed(path)}"


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    ValueError
        The file holds none; the message names it.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # also what is no UTF-8
        raise ValueError(f"{file} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold a JSON object, holds {type(found).__name__}")
    return found


def read_weights(path: str) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint of one file, in float32.

    Raises
    ------
    ValueError
        There is no such file.
    """
    import torch
    from safetensors.torch import load_file

    if file := find(path, "model.safetensors"):
        state = load_file(file)
    elif file := find(path, "pytorch_model.bin"):
        state = torch.load(file, map_location="cpu", weights_only=True)
    else:
        raise ValueError(f"no model.safetensors or pytorch_model.bin{listed(path)}")
    return {name: value.float() for name, value in state.items()}


def listed(path: str) -> str:
    """Say which files a local folder holds, to be put behind a message; else say nothing."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return ""
    names = sorted(file.name for file in folder.iterdir())
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"; files found: {', '.join(names[:SHOWN]) or 'none'}{more}"
