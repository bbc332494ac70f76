"""The trained model as others read it: names of tensors, and a config.json."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from fl_split.exits import insert_exits
from fl_split.experts import Mixture, insert_experts
from fl_split.models.cut import Head, Tail, insert
from fl_split.models.lora import merged
from fl_split.models.resnet import ResNet18
from fl_split.models.sparse_linear import SparseLinear, sparse_layers
from fl_split.tokens import insert as select
from simulations.runs.cut_weights import load_cut_weights
from simulations.runs.cuts import split
from simulations.runs.experiment import Experiment

MODEL, CODEC = "model.safetensors", "codec.safetensors"
"""Files of a run: weights of the model, and those that are trained beside it."""


def load_halves(
    folder: Path, experiment: Experiment, model_input: Mapping[str, int]
) -> tuple[nn.Module, Head, Tail]:
    """Read the trained model of a run; return it and both halves, which share its weights.

    `model_input` is what the model is built for, as the summary of the run says.
    """
    spec = experiment.parts.model
    if isinstance(spec, ResNet18) and spec.is_transformers:
        model: nn.Module = replace(spec, path=str(folder), width=64).build(**model_input, seed=0)
    elif spec.is_transformers:
        from transformers import AutoModelForImageClassification

        model = AutoModelForImageClassification.from_pretrained(folder)
    else:
        model = spec.build(**model_input, seed=0)
        model.load_state_dict(load_file(folder / MODEL))
    head, tail = split(experiment, model)
    parts, seed = experiment.parts, experiment.seed
    select(head, parts.tokens, seed)
    insert_experts(head, tail, parts.experts, seed, are_copies=True)
    insert(head, tail, parts.codec, seed)
    parts.strategy.exchange(head).prepare(head, tail, seed)
    insert_exits(head, tail, parts.exits, model_input["num_classes"], seed)
    file = folder / CODEC
    load_cut_weights(head, tail, load_file(file) if file.is_file() else {})
    return model, head, tail


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
    """Return `model` with adapters merged and sparse layers dense, or as it is without any.

    Of experts it has the first of each block, and so is not what was trained: no other library
    reads a mixture.
    """
    model = merged(model)
    if not sparse_layers(model) and not any(isinstance(one, Mixture) for one in model.modules()):
        return model
    model = copy.deepcopy(model)
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, SparseLinear):
            model.set_submodule(name, layer.dense())
        elif isinstance(layer, Mixture):
            model.set_submodule(name, layer.experts[0])
    return model


def config_of(model: nn.Module) -> Any:
    """Return the config of a model of transformers, which names the class that reads it back."""
    config: Any = copy.deepcopy(model.config)
    theirs = (kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))
    config.architectures = [next(theirs).__name__]
    return config
