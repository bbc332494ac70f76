"""Codecs: what turns smashed data into a payload and back. One file per paper, one line here."""

from fl_split.codecs.adc import ADC
from fl_split.codecs.attended import Attended
from fl_split.codecs.bottlenet import BottleNet
from fl_split.codecs.c3sl import C3SL
from fl_split.codecs.chain import Chain
from fl_split.codecs.codec import Codec, Mixed, Received, Smashed, only_packs
from fl_split.codecs.fedlite import FedLite
from fl_split.codecs.halves import BF16, FP16
from fl_split.codecs.identity import Identity
from fl_split.codecs.jscc import JSCC
from fl_split.codecs.lightsplit import LightSplit
from fl_split.codecs.nscsl import NSCSL
from fl_split.codecs.randtopk import RandTopK
from fl_split.codecs.rans import Rans
from fl_split.codecs.semantic import Semantic
from fl_split.codecs.slfac import SLFAC
from fl_split.codecs.slicer import SLICER
from fl_split.codecs.splitcom import SplitCom
from fl_split.codecs.splitfc import SplitFC
from fl_split.codecs.topk import TopK
from fl_split.codecs.uniform import Uniform
from fl_split.codecs.zstd import Zstd
from fl_split.spec_errors import SpecError
from fl_split.specs import parse, stages
from fl_split.tables import Table

CODECS: Table[type[Codec]] = Table(
    Codec,
    "fl_split.codecs",
    {
        "adc": ADC,
        "attended": Attended,
        "bf16": BF16,
        "bottlenet": BottleNet,
        "c3sl": C3SL,
        "fedlite": FedLite,
        "fp16": FP16,
        "identity": Identity,
        "jscc": JSCC,
        "lightsplit": LightSplit,
        "nscsl": NSCSL,
        "randtopk": RandTopK,
        "rans": Rans,
        "semantic": Semantic,
        "slfac": SLFAC,
        "slicer": SLICER,
        "splitcom": SplitCom,
        "splitfc": SplitFC,
        "topk": TopK,
        "uniform": Uniform,
        "zstd": Zstd,
    },
)


def parse_codec(spec: str) -> Codec:
    """Build ``"a(...)"`` or a chain ``"a(...) | b(...)"``; SpecError if that cannot be."""
    found = tuple(parse(part, CODECS) for part in stages(spec))
    try:
        return found[0] if len(found) == 1 else Chain(found)
    except ValueError as error:
        raise SpecError(f"{spec!r}: {error}") from None


def parse_downlink(spec: str) -> Codec:
    """Build what packs cut gradients; SpecError if a codec cannot do that."""
    try:
        return parse_codec(spec).for_gradients()
    except ValueError as error:
        raise SpecError(f"{spec!r}: {error}") from None


__all__ = [
    "ADC",
    "CODECS",
    "Chain",
    "Codec",
    "Identity",
    "Mixed",
    "Received",
    "Smashed",
    "only_packs",
    "parse_codec",
    "parse_downlink",
]
