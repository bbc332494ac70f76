"""The trained model as others read it: names of tensors, and a config.json."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

MODEL, CODEC, BESIDE = "model.safetensors", "codec.safetensors", "beside.safetensors"
"""Files of a run: weights of the model, of a trained codec, of exits beside the head."""


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


def named_weights(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return copies of the weights of modules, each by the module's name and its own."""
    return {
        f"{prefix}.{name}".lstrip("."): weight.detach().to("cpu", copy=True)
        for prefix, module in modules.items()
        for name, weight in module.state_dict().items()
    }


def config_of(model: nn.Module) -> Any:
    """Return the config of a model of transformers, which names the class that reads it back."""
    config: Any = copy.deepcopy(model.config)
    theirs = (kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))
    config.architectures = [next(theirs).__name__]
    return config
