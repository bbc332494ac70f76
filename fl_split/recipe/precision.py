"""Mixed precision: products of head and tail in 16 bits, weights, losses and payloads in fp32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fl_split.flat import Flat

Name = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}

LOSS_SCALE = 2.0**10
"""What losses are multiplied by before a backward pass in fp16."""


@dataclass(frozen=True)
class Precision:
    """What torch's autocast makes of a forward pass, and how its backward pass is scaled.

    Smallest gradients would vanish in fp16. They are computed times a power of two, which is
    exact, and divided by it in fp32: :data:`LOSS_SCALE` for a loss; for given gradients, as at a
    cut, what brings the largest of them near 1. So there is no scale to be remembered.
    """

    name: Name = "fp32"

    def forward(self, tensor: Tensor) -> AbstractContextManager[Any]:
        """Run the forward passes in the block, on the device of `tensor`, in this precision."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(tensor.device.type, dtype=DTYPES[self.name])

    def differentiate(
        self,
        flat: Flat[Any],
        outputs: Sequence[Tensor],
        gradients: Sequence[Tensor] | None = None,
        inputs: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Do what :meth:`Flat.differentiate` does, scaled where it has to be."""
        if self.name != "fp16":
            return flat.differentiate(outputs, gradients, inputs)
        if gradients is None:
            scale = LOSS_SCALE
            outputs = [output * scale for output in outputs]
        else:
            scale = self.scale(gradients)
            gradients = [gradient * scale for gradient in gradients]
        gradient, others = flat.differentiate(outputs, gradients, inputs)
        gradient /= scale
        if flat.statistics is not None:  # which no loss reaches
            gradient[flat.statistics] *= scale
        return gradient, [other / scale for other in others]

    def scale(self, gradients: Sequence[Tensor]) -> float:
        """Return what gradients are multiplied by before a backward pass, 1 but in fp16."""
        if self.name != "fp16":
            return 1.0
        largest = max((float(one.abs().max()) for one in gradients if one.numel()), default=0.0)
        if not largest or not math.isfinite(largest):
            return 1.0
        return 2.0 ** -math.frexp(largest)[1]


FP32 = Precision()
