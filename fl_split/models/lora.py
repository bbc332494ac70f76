"""Low-rank adapters (Hu et al., ICLR 2022, arXiv 2106.09685) through `peft`, an optional extra.

What is frozen is the same everywhere and stays where it is: it is neither optimised nor sent.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from fl_split.models.vit import classifiers
from fl_split.seeds import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TARGETS = ["q_proj", "v_proj"]
"""Layers of attention that get adapters, as in the paper."""


def add_adapters(model: PreTrainedModel, rank: int, seed: int) -> None:
    """Freeze `model` but for its classifier; add adapters of `rank` to queries and values.

    An adapter adds B A x to W x, scaled by 1. A is drawn from `seed` and B is zero, so
    nothing changes before training.

    Raises
    ------
    ValueError
        `peft` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError("lora needs peft: pip install 'fl-split[lora]'") from None
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS)
    with seeded(seed, "adapters"):
        inject_adapter_in_model(config, model)
    for classifier in classifiers(model):
        classifier.requires_grad_(True)


def merged(model: nn.Module) -> nn.Module:
    """Return `model` with its adapters added to the weights they adapt, or as it is."""
    if not _adapted(model):
        return model
    model = copy.deepcopy(model)
    for name, layer in _adapted(model).items():
        layer.merge()
        model.set_submodule(name, layer.base_layer)
    return model


def _adapted(model: nn.Module) -> dict[str, Any]:
    return {name: part for name, part in model.named_modules() if hasattr(part, "base_layer")}
