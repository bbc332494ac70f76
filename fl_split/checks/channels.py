"""Laws that every channel keeps."""

from __future__ import annotations

from functools import partial

from fl_split.channels import Channel, Crossing
from fl_split.checks.codecs import AT, codec_trial
from fl_split.checks.laws import check_repr, hold, must
from fl_split.codecs import Codec, parse_codec
from fl_split.payload import Payload
from fl_split.seeds import StepId, global_state, seeded

CODECS = (
    "identity()",
    "topk(ratio=0.3)",
    "uniform(bits=3)",
    "uniform(bits=5, per='channel')",
    "fp16()",
    "slicer()",
    "splitfc()",
    "fedlite(length=4)",
    "topk(ratio=0.3) | uniform(bits=4) | zstd()",
)
"""What packs the messages: fp32, halves, packed numbers, places of a codebook, one blob."""

STEPS = 10
"""Messages of each codec, each a step with draws of its own."""


def check_channel(channel: Channel) -> None:
    """Hold a channel to its laws; raise AssertionError with the one that it breaks.

    On ten messages of each of several codecs, unless it refuses the codec with ValueError:

    - its repr is its spec, and it carries at least one codec;
    - the generator that it is given decides on all that is random;
    - what was sent stays as it is, and what arrives has its names, shapes and types, and finite
      values, unless it is lost or said to be spoilt;
    - a message is lost only where :meth:`~fl_split.channels.Channel.can_lose` says so;
    - the way takes as many bytes as the message has, or more, unless it is analog; repetitions
      are among them; no count is negative, and no more numbers are zeroed than are damaged.
    """
    check_repr(channel)
    carried = [codec for codec in map(parse_codec, CODECS) if _carries(channel, codec)]
    hold(bool(carried), "a channel must carry what one of our codecs packs")
    for codec in carried:
        data = codec_trial(codec)
        for number in range(STEPS):
            _check_message(channel, codec, data, StepId(AT.seed, AT.round, AT.client, number))


def _carries(channel: Channel, codec: Codec) -> bool:
    try:
        channel.check(codec)
    except ValueError:
        return False
    except Exception as error:
        law = "a codec that cannot be carried must be refused with ValueError"
        raise AssertionError(f"{law}, got {type(error).__name__}: {error}") from error
    return True


def _check_message(channel: Channel, codec: Codec, data: bytes, at: StepId) -> None:
    def cross(number: int) -> Crossing:
        with seeded(number, "trial"):
            before = global_state()
            found = channel.cross(data, codec, at.generator("channel"))
            law = "all that is random must come from the generator that is given"
            hold(global_state() == before, law)
            return found

    kept = bytes(bytearray(data))
    found = must(f"what {codec!r} packs must cross", partial(cross, 1))
    hold(data == kept, "what was sent must stay as it is")
    law = "all that is random must come from the generator that is given"
    hold(found == cross(2), law)
    counts = found.size, found.resent, found.uses, found.damaged, found.zeroed
    hold(min(counts) >= 0, f"no count may be negative, got {counts}")
    hold(found.zeroed <= found.damaged, "zeroed numbers must be among the damaged ones")
    hold(found.resent <= found.size, "repetitions must be among the bytes on the way")
    is_counted = found.size >= len(data) or found.uses > 0
    hold(is_counted, f"{len(data)} bytes must take as many or more, got {found.size}")
    if found.data is None or found.is_spoilt:
        hold(channel.can_lose(codec), f"{channel!r} may lose what {codec!r} packs and must say so")
        return
    sent, arrived = Payload.from_bytes(data), Payload.from_bytes(found.data)
    hold(_forms(sent) == _forms(arrived), "what arrives must have the names and shapes of old")
    is_finite = all(bool(value.isfinite().all()) for value in arrived.carried.values())
    hold(is_finite, "values that arrive must be finite")
    must(f"{codec!r} must unpack what arrives", partial(codec.unpack, arrived))


def _forms(payload: Payload) -> list[dict[str, tuple[object, ...]]]:
    return [
        {name: (tensor.dtype, *tensor.shape) for name, tensor in tensors.items()}
        for tensors in (payload.carried, payload.side)
    ]
