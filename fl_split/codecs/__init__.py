"""Codecs: what turns smashed data into a payload and back. One file per paper, one line here."""

from fl_split.codecs.adc import ADC
from fl_split.codecs.codec import Codec, Received, Smashed
from fl_split.codecs.identity import Identity

CODECS = {"adc": ADC, "identity": Identity}

__all__ = ["ADC", "CODECS", "Codec", "Identity", "Received", "Smashed"]
