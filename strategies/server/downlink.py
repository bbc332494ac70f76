"""How cut gradients go down to the clients of a round."""

from __future__ import annotations

from torch import Tensor

from fl_split.codecs import Codec
from fl_split.exchange.split import Place, pack
from fl_split.payload import Payload


class Downlink:
    """Pack cut gradients; with error feedback, send later what packing left out.

    That is e <- g + e - sent, with e zero at the start of a round and where the next cut
    gradient has another shape, as that of an epoch's last batch (after Seide et al., 2014).
    Rows are samples: what row i of a batch is owed is paid to row i of the next batch, another
    sample, so that only sums over samples (as the gradient of a bias) get all that is theirs.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._lost: dict[int, dict[str, Tensor]] = {}

    def pack(self, cut: Payload, place: Place) -> Payload:
        """Return what is sent of the cut gradient of the client and step of `place`."""
        values, lost = cut.values, self._lost.pop(place.client, {})
        if all(name in lost and lost[name].shape == value.shape for name, value in values.items()):
            values = {name: value + lost[name] for name, value in values.items()}
        packed = pack(self.codec, Payload(values), place, "downlink")
        if self.codec.error_feedback:
            sent = self.codec.unpack(packed).values
            self._lost[place.client] = {k: value - sent[k] for k, value in values.items()}
        return packed
