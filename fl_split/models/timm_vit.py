"""Plain Vision Transformers of timm, under the names and settings of transformers.

The two compute the same. timm keeps queries, keys and values in one matrix, and the number of
attention heads in its code: it is not in a checkpoint, and follows from the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

ARCHITECTURE = re.compile(r"(?:vit|deit)_(tiny|small|base|large|huge)_patch(\d+)_(\d+)")
"""Names of plain ones: size, patch size, image size."""

HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
"""Attention heads of each size."""

RENAMED = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "head": "classifier",
}
RENAMED_IN_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Modules, without `weight` and `bias`, and what transformers calls them."""


def converted(
    found: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return settings of a ViTConfig, and weights of a ViTForImageClassification.

    Parameters
    ----------
    found : Mapping
        timm's config.json.
    weights : Mapping
        timm's state dict.

    Raises
    ------
    ValueError
        It is no plain ViT: another architecture, pooling, or tensors that a ViT has not.
    """
    name = str(found["architecture"])
    given = {**found, **(found.get("model_args") or {})}
    known = ARCHITECTURE.fullmatch(name)
    if not known:
        raise ValueError("of timm only plain ViTs can be used, such as vit_base_patch16_224")
    if given.get("global_pool", "token") not in ("token", ""):
        raise ValueError(f"{name} classifies by {given['global_pool']!r}, not by the CLS token")
    state = _renamed(weights)
    kernel = state.get("vit.embeddings.patch_embeddings.projection.weight")
    mlp = state.get("vit.layers.0.mlp.fc1.weight")
    if kernel is None or mlp is None:
        raise ValueError(f"the file of {name} lacks patch_embed.proj or blocks.0.mlp.fc1")
    heads = int(given.get("num_heads", HEADS[known[1]]))
    return {
        "hidden_size": kernel.shape[0],
        "num_hidden_layers": 1 + max(int(key.split(".")[2]) for key in state if ".layers." in key),
        "num_attention_heads": heads,
        "intermediate_size": mlp.shape[0],
        "num_channels": kernel.shape[1],
        "patch_size": kernel.shape[2],
        "image_size": int(given.get("img_size", input_size(found)[1])),
        "qkv_bias": "vit.layers.0.attention.q_proj.bias" in state,
        "layer_norm_eps": 1e-6,
    }, state


def input_size(found: Mapping[str, Any]) -> tuple[int, int]:
    """Return channels and pixels a side of the images that timm's config.json is for.

    Where it has no input_size they are those of the architecture; 0 pixels are any.

    Raises
    ------
    ValueError
        Its input_size makes no sense.
    """
    given = (found.get("pretrained_cfg") or {}).get("input_size")
    if given is None:
        known = ARCHITECTURE.fullmatch(str(found.get("architecture")))
        return 3, int(known[3]) if known else 0
    is_list = isinstance(given, list | tuple) and len(given) == 3
    if not is_list or given[1] != given[2] or not all(type(n) is int and n > 0 for n in given):
        raise ValueError(
            "input_size must be channels, height and width of squares, such as [3, 224, 224], got "
            f"{given!r}"
        )
    return given[0], given[2]


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    strange = []
    for key, value in weights.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", key)
        module, _, last = key.rpartition(".")
        if block and block[2] == "attn.qkv":
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                state[f"vit.layers.{block[1]}.attention.{part}_proj.{block[3]}"] = piece
        elif block and block[2] in RENAMED_IN_BLOCK:
            state[f"vit.layers.{block[1]}.{RENAMED_IN_BLOCK[block[2]]}.{block[3]}"] = value
        elif key in RENAMED:
            state[RENAMED[key]] = value
        elif module in RENAMED:
            state[f"{RENAMED[module]}.{last}"] = value
        else:
            strange.append(key)
    if strange:
        raise ValueError(f"its weights have {strange[0]!r}, which a plain ViT has not")
    return state
