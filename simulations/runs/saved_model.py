"""The trained model as others read it: names of tensors, and a config.json."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from fl_split.models.lora import merged
from fl_split.models.sparse_linear import SparseLinear, sparse_layers


def tensors(model: nn.Module, is_transformers: bool) -> dict[str, Tensor]:
    """Return copies of all weights; of a model of transformers, by names that it saves.

    Version 5 renamed the parts of a ViT, and reads both names; version 4 reads the old ones.
    """
    state = {
        name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()
    }
    if not is_transformers:
        return state
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, Tensor] = revert_weight_conversion(model, state)
    return found


def plain(model: nn.Module) -> nn.Module:
    """Return `model` with adapters merged and sparse layers dense, or as it is without any."""
    model = merged(model)
    if not sparse_layers(model):
        return model
    model = copy.deepcopy(model)
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, SparseLinear):
            model.set_submodule(name, layer.dense())
    return model


def config_of(model: nn.Module) -> Any:
    """Return the config of a model of transformers, which names the class that reads it back."""
    config: Any = copy.deepcopy(model.config)
    theirs = (kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))
    config.architectures = [next(theirs).__name__]
    return config
