"""The stages of a transformers ResNet; apart from its description, which needs no transformers."""

from __future__ import annotations

from torch import nn
from transformers import ResNetForImageClassification


class ResNetModel(ResNetForImageClassification):  # type: ignore[misc]
    """Stages stem, stage1.1, stage1.2, stage2.1 ... stage4.2, classifier."""

    image_shape: tuple[int, int, int]

    def stages(self) -> dict[str, nn.Module]:
        """Return the stages by name; pooling belongs to the classifier."""
        layers = {
            f"stage{stage}.{number}": layer
            for stage, part in enumerate(self.resnet.encoder.stages, 1)
            for number, layer in enumerate(part.layers, 1)
        }
        classifier = nn.Sequential(self.resnet.pooler, self.classifier)
        return {"stem": self.resnet.embedder, **layers, "classifier": classifier}
