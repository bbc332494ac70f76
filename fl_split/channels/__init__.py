"""Channels: what a link does to what is on it. One file per kind, one line here."""

from fl_split.channels.awgn import AWGN
from fl_split.channels.bit_errors import BitErrors
from fl_split.channels.channel import Channel, Crossing
from fl_split.channels.erasure import Erasure
from fl_split.channels.perfect import Perfect
from fl_split.channels.rayleigh import Rayleigh
from fl_split.tables import Table

CHANNELS: Table[type[Channel]] = Table(
    Channel,
    "fl_split.channels",
    {
        "awgn": AWGN,
        "bit_errors": BitErrors,
        "erasure": Erasure,
        "perfect": Perfect,
        "rayleigh": Rayleigh,
    },
)

__all__ = ["CHANNELS", "Channel", "Crossing", "Perfect"]
