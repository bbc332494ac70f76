"""The link: the only road between clients' heads and the tail, both ways.

    client                                            server
    payload -> pack -> bytes  ───── up ─────►  bytes -> unpack -> decode -> tail
    head <- unpack <- bytes   ◄──── down ────  bytes <- pack <- cut gradient (+ error feedback)

Nothing else packs, unpacks or serialises. What is received is made of the bytes that were
counted (see :mod:`fl_split.exchange.account`) and of a public seed.

What the channel does to bytes depends on nothing but the bytes and the step, so that the
server works it out for both ways: of what has come, and of what it is about to send.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from fl_split.accelerators import CPU
from fl_split.channels import Channel, Crossing, Perfect
from fl_split.channels.channel import clean
from fl_split.codecs import Codec, Identity, Received
from fl_split.exchange.account import UPWARD, Account, Way
from fl_split.exchange.mixing import mix
from fl_split.exchange.soundness import check_finite, check_received, shapes
from fl_split.models.cut import Tail
from fl_split.payload import Payload
from fl_split.seeds import Purpose, StepId

UNREADABLE = (KeyError, IndexError, OverflowError, RuntimeError, TypeError, ValueError)
"""What bytes that somebody made up may raise when they are read."""

NOTHING: Mapping[str, Tensor] = MappingProxyType({})

DRAWS: dict[Way, Purpose] = {
    "up": "channel",
    "down": "down channel",
    "output": "output channel",
    "way back": "way back channel",
}
"""What the channel draws for each of them."""


@dataclass(frozen=True)
class Arrival:
    """A payload on the server: where its cut gradient is taken, and what the tail is fed."""

    leaves: dict[str, Tensor]
    received: Received

    @property
    def rows(self) -> int:
        """Rows K that run through the tail."""
        return len(self.received.tokens)

    @property
    def values(self) -> int:
        """Numbers through which gradients flow."""
        return sum(leaf.numel() for leaf in self.leaves.values())

    @property
    def tokens(self) -> int:
        """Tokens T of each row, at most."""
        return int(self.received.tokens.shape[1])


class Link:
    """What payloads and cut gradients go through.

    Parameters
    ----------
    codec : Codec
        Packs smashed data; its encoding is the exchange's business.
    downlink : Codec
        Packs cut gradients, and what else crosses in a U-shape. With error feedback, what
        packing leaves out of a cut gradient is added to the client's next one:
        e <- g + e - sent, with e zero at first and where the next cut gradient has another
        shape, as that of an epoch's last batch (after Seide et al., 2014). Rows are samples:
        what row i of a batch is owed is paid to row i of the next batch, another sample, so
        that only sums over samples (as the gradient of a bias) get all that is theirs.
    channel, down_channel : Channel
        What becomes of bytes on their way to the server, and to the client. Both ends pack and
        unpack as if there were none: see :meth:`over`.
    snr_db : Callable, optional
        Signal-to-noise ratio of a message in dB, for channels that ask for it.
    device : torch.device
        Where what is received is put; bytes and channels are on the CPU.
    """

    def __init__(
        self,
        codec: Codec,
        downlink: Codec,
        channel: Channel | None = None,
        down_channel: Channel | None = None,
        snr_db: Callable[[Way, StepId], float] | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.snr_db, self.device = snr_db, device
        self.codec, self.downlink = codec, downlink
        self.channel, self.down_channel = channel or Perfect(), down_channel or Perfect()
        self._owed: dict[int, dict[str, Tensor]] = {}
        self._known: dict[int, dict[str, Tensor]] = {}

    @property
    def encodes(self) -> bool:
        """Whether smashed data are changed before they are sent."""
        return not isinstance(self.codec, Identity)

    @property
    def packs_down(self) -> bool:
        """Whether cut gradients are."""
        return not isinstance(self.downlink, Identity)

    def renewed(self) -> Link:
        """Return a link like this one that owes nobody anything, as at the start of a round.

        What the server remembers of smashed data, for a codec that does, is the same.
        """
        roads = self.codec, self.downlink, self.channel, self.down_channel
        link = Link(*roads, self.snr_db, self.device)
        link._known = self._known
        return link

    def state(self) -> dict[str, Tensor]:
        """Return what the server remembers of smashed data from round to round, by name."""
        return {
            f"{client}/{name}": value
            for client, known in self._known.items()
            for name, value in known.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Remember what :meth:`state` returned."""
        for path, value in state.items():
            client, _, name = path.partition("/")
            self._known.setdefault(int(client), {})[name] = value.to(self.device)

    def road(self, way: Way) -> tuple[Channel, Codec]:
        """Return over which channel a message goes, and which codec has packed it."""
        channel = self.channel if way in UPWARD else self.down_channel
        return channel, self.codec if way == "up" else self.downlink

    def up(
        self,
        payload: Payload,
        at: StepId,
        samples: Tensor | None = None,
        memory: dict[str, Tensor] | None = None,
    ) -> bytes:
        """Client: serialise smashed data, packed by the codec; ValueError if not finite.

        For a codec that remembers, `samples` (B,) says which of the client's the rows are, and
        `memory`, which is changed, has what it remembers; without them nothing has been sent yet.
        """
        return self._packed(payload, at, samples, memory).to_bytes()

    def over(self, data: bytes | memoryview, at: StepId, way: Way, account: Account) -> Crossing:
        """Server: return what a message is at the end of its way; count what the way takes.

        What is so damaged that it makes no sense to its receiver is lost.
        """
        channel, codec = self.road(way)
        if channel.is_perfect:
            return Crossing(data, len(data))
        if channel.asks_snr and self.snr_db:
            channel = channel.with_snr(self.snr_db(way, at))
        sent = bytes(data)
        found = channel.cross(sent, codec, at.generator(DRAWS[way]))
        if found.is_spoilt and not _makes_sense(found.data, sent, codec, channel.largest):
            found = replace(found, data=None)
        account.count_crossing(at.client, way, found, len(sent))
        return found

    def received(self, crossing: Crossing, at: StepId, tail: Tail) -> Arrival | None:
        """Server: unpack and decode what is left of smashed data; None if nothing is.

        Raises
        ------
        ValueError
            As :meth:`arrive`, if that is not the channel's fault.
        """
        try:
            if crossing.data is None:
                return None
            gone = {self.codec.value_of(name): one for name, one in crossing.gone.items()}
            return self._arrived(self._here(crossing.data), at, tail, gone, crossing.state)
        except ValueError:
            if crossing.is_spoilt:
                return None
            raise

    def arrive(self, data: bytes | memoryview, at: StepId, tail: Tail) -> Arrival:
        """Server: unpack and decode what :meth:`up` sent.

        Raises
        ------
        ValueError
            Bytes that are no payload, or one that `tail` cannot be trained on.
        """
        return self._arrived(self._here(data), at, tail)

    def carry(self, payload: Payload, at: StepId, tail: Tail) -> Arrival:
        """Do both in one process, which needs no bytes."""
        return self._arrived(self._packed(payload, at), at, tail)

    def down(self, gradient: Payload, at: StepId) -> bytes:
        """Server: serialise a cut gradient, packed by the downlink; ValueError if not finite."""
        values, owed = gradient.carried, self._owed.pop(at.client, {})
        if all(name in owed and owed[name].shape == value.shape for name, value in values.items()):
            values = {name: value + owed[name] for name, value in values.items()}
        packed = _pack(self.downlink, Payload(values), at, "downlink")
        if self.downlink.error_feedback:
            sent = self.downlink.unpack(packed).carried
            self._owed[at.client] = {k: value - sent[k] for k, value in values.items()}
        return packed.to_bytes()

    def across(self, payload: Payload, at: StepId, purpose: Purpose) -> bytes:
        """Either side: serialise other tensors, packed by the downlink without error feedback."""
        return _pack(self.downlink, payload, at, purpose).to_bytes()

    def read(self, data: bytes | memoryview, at: StepId) -> Payload:
        """Either side: unpack what :meth:`down` or :meth:`across` sent; ValueError if it cannot."""
        try:
            return self.downlink.unpack(self._here(data))
        except UNREADABLE as error:
            raise ValueError(f"cannot be unpacked: {error}") from None

    def _here(self, data: bytes | memoryview) -> Payload:
        """Read bytes, and put what they hold on the device."""
        return Payload.from_bytes(data).to(self.device)

    def _packed(
        self,
        payload: Payload,
        at: StepId,
        samples: Tensor | None = None,
        memory: dict[str, Tensor] | None = None,
    ) -> Payload:
        if self.codec.remembers:
            check_finite(payload)  # before it is remembered
            rows = len(next(iter(payload.carried.values())))
            samples = torch.arange(rows, device="cpu") if samples is None else samples
            payload = self.codec.omit(payload, samples, {} if memory is None else memory)
        return _pack(self.codec, payload, at, "pack")

    def _arrived(
        self,
        packed: Payload,
        at: StepId,
        tail: Tail,
        gone: Mapping[str, Tensor] = NOTHING,
        state: Mapping[str, Tensor] = NOTHING,
    ) -> Arrival:
        try:
            payload = self.codec.unpack(packed)
            check_finite(payload)
            if self.codec.remembers:
                payload = self.codec.complete(payload, self._known.setdefault(at.client, {}))
            leaves = {k: value.detach().requires_grad_() for k, value in payload.carried.items()}
            values = {
                k: torch.where(gone[k].to(leaf.device), leaf.detach(), leaf)
                if k in gone and gone[k].shape == leaf.shape
                else leaf
                for k, leaf in leaves.items()
            }
            decoded = self.codec.decode(Payload(values, payload.side, channel_state=state))
            received = mix(decoded, payload.side, tail.num_classes)
        except UNREADABLE as error:
            raise ValueError(f"cannot be decoded: {error}") from None
        check_received(received, tail)
        return Arrival(leaves, received)


def _pack(codec: Codec, payload: Payload, at: StepId, purpose: Purpose) -> Payload:
    """Return what is sent of `payload`, without its graph."""
    check_finite(payload)  # some grids would hide what is not
    with torch.no_grad():
        return codec.pack(payload, at.generator(purpose))


def _makes_sense(data: bytes | memoryview | None, sent: bytes, codec: Codec, most: float) -> bool:
    """Tell whether spoilt data can be unpacked, to the values that were sent, none above `most`.

    Numbers may differ, names and shapes may not: a client knows those of its cut gradient.
    """
    try:
        found, wanted = (codec.unpack(Payload.from_bytes(one or b"")) for one in (data, sent))
        return not clean(found, most) and shapes(found) == shapes(wanted)
    except UNREADABLE:
        return False
