"""Freezing: stages that keep the weights they have; they are neither trained nor sent."""

from __future__ import annotations

from typing import Any

from torch import nn

from fl_split.models.vit import blocks, classifiers
from fl_split.spec_errors import unknown


def stages_of(module: Any) -> dict[str, list[nn.Module]]:
    """Return the stages of a model by name, in order, each as the modules that it is of."""
    if callable(own := getattr(module, "stages", None)):
        return {name: [stage] for name, stage in own().items()}
    backbone = module.base_model
    found = {f"block{number}": [block] for number, block in enumerate(blocks(module), start=1)}
    return {
        "embeddings": [backbone.embeddings],
        **found,
        "classifier": [backbone.layernorm, *classifiers(module)],
    }


def freeze(module: nn.Module, names: str) -> None:
    """Freeze the stages `names` of `module`, with commas between; nothing for an empty text.

    Raises
    ------
    ValueError
        The model has no stage of such a name.
    """
    known = stages_of(module) if names else {}
    for name in filter(None, map(str.strip, names.split(","))):
        if name not in known:
            raise ValueError(unknown("stage", name, known))
        for part in known[name]:
            part.requires_grad_(False)
