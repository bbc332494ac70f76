"""Checkpoints of transformers, from a local folder or a hub name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.image_processing_base import ImageProcessingMixin

from fl_split.seeds import seeded


def load(
    from_pretrained: Callable[..., Any], what: str, path: str, num_classes: int, seed: int
) -> Any:
    """Load a `what` of transformers; a classifier of another size is drawn from `seed`.

    Raises
    ------
    ValueError
        There is nothing to load at `path`, or no `what`.
    """
    if path.startswith((".", "/", "~")) and not Path(path).is_dir():
        raise ValueError(f"cannot load a {what} from {path!r}: no such folder")
    try:
        with seeded(seed, "model"):
            model, found = from_pretrained(
                path,
                num_labels=num_classes,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # every file format fails in its own way
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        reason = reason if Path(path).is_dir() else f"no such folder here, and {reason}"
        raise ValueError(f"cannot load a {what} from {path!r}: {reason}") from None
    missing = [key for key in found["missing_keys"] if "classifier." not in key]
    if missing:
        raise ValueError(f"{path!r} holds no {what}: {missing[0]} is missing")
    return model


def classifiers(model: Any) -> list[Any]:
    """What is behind the backbone: the classifier of token 0, that of token 1 if there is one."""
    return [part for part in model.children() if part is not model.base_model]


def normalisation(path: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, per channel, that a checkpoint was trained with."""
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except OSError:
        settings = {}
    return settings.get("image_mean", [0.5]), settings.get("image_std", [0.5])
