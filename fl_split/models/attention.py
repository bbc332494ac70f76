"""The CLS attention of a Transformer block, without the block's own attention map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def cls_attention(block: Any, tokens: Tensor) -> Tensor:
    """Attention of the CLS query in `block`, (B, N), without materialising N x N.

    `tokens` (B, N, D) are the block's input. Per attention head q . (W x + b) = (W^T q) . x +
    q . b, and the last term is the same for every token, so softmax drops it: one D-vector per
    attention head replaces the key projection of all N tokens, and the block itself keeps its
    fused kernel.
    """
    attention = block.attention
    shape = (attention.num_attention_heads, attention.head_dim)
    norm = block.norm1 if hasattr(block, "norm1") else block.layernorm_before  # as in DINOv2
    normed = norm(tokens)  # batch tokens dim
    query = attention.q_proj(normed[:, 0]).unflatten(-1, shape)
    key_weight = attention.k_proj.weight.unflatten(0, shape)
    probe = torch.einsum("bhe,hed->bhd", query, key_weight)
    scores = torch.einsum("bhd,bnd->bhn", probe, normed) * attention.scaling
    return scores.softmax(dim=-1).mean(dim=1)


def cls_attention_flops(block: Any, tokens: int, width: int) -> int:
    """Operations of :func:`cls_attention` on one sample: query, probes, scores; no backward."""
    attention = block.attention
    inner = attention.num_attention_heads * attention.head_dim
    query = sum(layer.weight.numel() for layer in linear_layers(attention.q_proj))
    return 2 * (query + inner * width + attention.num_attention_heads * tokens * width)


def linear_layers(module: Any) -> list[torch.nn.Linear]:
    """Return all linear layers in `module`: one, or with its adapters three."""
    return [part for part in module.modules() if isinstance(part, torch.nn.Linear)]
