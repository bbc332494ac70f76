"""A transformers ResNet-18 (He et al., CVPR 2016), cut after its stem or any of its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from fl_split.models import checkpoint, processor
from fl_split.models.checkpoint import Loaded
from fl_split.models.cut import Head, Tail
from fl_split.models.norms import replace
from fl_split.models.preprocessing import Preprocessing
from fl_split.models.stages import split
from fl_split.seeds import seeded
from fl_split.specs import STRICT

if TYPE_CHECKING:
    from fl_split.models.resnet_stages import ResNetModel


@dataclass(frozen=True, config=STRICT)
class ResNet18:
    """ResNet-18: a stem, four stages of two basic layers, global pooling, a classifier.

    Parameters
    ----------
    width : int
        Channels of the first stage; each later stage has twice as many.
    small_images : bool
        A stem of 3x3 kernels, without stride and pooling, as is usual for 28 to 64 pixels;
        else that of ImageNet (7x7, stride 2, max-pool 2), which the SplitFed papers have too.
    norm : "batch" or "group"
        Group norm has no running statistics and does not let samples change each other.
    stats : "averaged" or "batch"
        Batch norm's running statistics: averaged, sent and counted with the weights (as the
        SplitFed code does), or none, and evaluation normalises by its own batch.
    path : str
        A checkpoint, instead of weights from scratch; its sizes are taken.
    image_size : int
        0 takes the size of the data set's images; images are resized to it.
    """

    width: Annotated[int, Field(ge=2)] = 64
    small_images: bool = False
    norm: Literal["batch", "group"] = "batch"
    stats: Literal["averaged", "batch"] = "averaged"
    path: str = ""
    paths: ClassVar[tuple[str, ...]] = ("path",)

    image_size: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.path and (self.width != 64 or self.small_images or self.norm != "batch"):
            raise ValueError("path takes width, stem and norm from the checkpoint; give none")

    @property
    def is_transformers(self) -> bool:
        """Whether ``from_pretrained`` gives the trained model back."""
        return not self.small_images and (self.norm, self.stats) == ("batch", "averaged")

    def build(self, *, image_size: int, channels: int, num_classes: int, seed: int) -> nn.Module:
        """Build the model for square images of `image_size` pixels, weights drawn from `seed`.

        Raises
        ------
        ValueError
            There is no ResNet at `path`, or its config.json does not fit its weights.
        """
        sizes = {"image_size": image_size, "channels": channels, "num_classes": num_classes}
        return self.load(**sizes, seed=seed).module

    def load(self, *, image_size: int, channels: int, num_classes: int, seed: int) -> Loaded:
        """Do the same, and say what was decided about a checkpoint."""
        loaded = (
            self._from_checkpoint(num_classes, seed)
            if self.path
            else Loaded(self._from_scratch(channels, num_classes, seed))
        )
        model: Any = loaded.module
        replace(model, self.norm, self.stats)
        size = self.image_size or image_size
        model.image_shape = model.config.num_channels, size, size
        return loaded

    def split(self, module: Any, cut: int | str, end: int | str = 0) -> tuple[Head, Tail]:
        """Cut what :meth:`build` returned, see :func:`fl_split.models.stages.split`."""
        return split(module, cut, end)

    def preprocessing(self) -> Preprocessing:
        """Return what is done to images before this model sees them."""
        if not self.path:
            return Preprocessing()
        channels = checkpoint.settings(self.path, "ResNet").get("num_channels", 3)
        return processor.read(self.path, channels, self.image_size, self.image_size)

    def _from_checkpoint(self, num_classes: int, seed: int) -> Loaded:
        from fl_split.models.resnet_stages import ResNetModel

        found = checkpoint.settings(self.path, "ResNet")
        if found.get("model_type") != "resnet":
            raise ValueError(
                f"cannot load a ResNet from {self.path!r}: it is {checkpoint.described(found)}; "
                "of a ViT and its relatives use pretrained(path=...)"
            )
        config = checkpoint.configured(ResNetModel, found, self.path, num_classes)
        return checkpoint.load(ResNetModel, self.path, config, "ResNet", seed)

    def _from_scratch(self, channels: int, num_classes: int, seed: int) -> ResNetModel:
        from transformers import ResNetConfig

        from fl_split.models.resnet_stages import ResNetModel

        config = ResNetConfig(
            num_channels=channels,
            embedding_size=self.width,
            hidden_sizes=[self.width * 2**stage for stage in range(4)],
            depths=[2, 2, 2, 2],
            layer_type="basic",
            num_labels=num_classes,
        )
        with seeded(seed, "model"):
            model = ResNetModel(config)
            if self.small_images:
                stem = nn.Conv2d(channels, self.width, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
                model.resnet.embedder.embedder.convolution = stem
                model.resnet.embedder.pooler = nn.Identity()
        return model
